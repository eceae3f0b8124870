"""Which pages a dump keeps, and their way from a reader to the writers."""
