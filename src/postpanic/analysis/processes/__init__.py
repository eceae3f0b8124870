"""The memory of processes: their areas, and where each page of them is."""
