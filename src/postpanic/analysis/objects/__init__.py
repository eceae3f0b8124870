"""Objects and types of a kernel as rows, laid out as crash and gdb lay them out."""
