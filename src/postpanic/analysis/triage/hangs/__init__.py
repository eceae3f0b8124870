"""Who waits for whom, and who holds everybody up."""
