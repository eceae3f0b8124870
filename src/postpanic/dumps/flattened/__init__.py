"""Flattened streams: layout, and the random-access view of what is inside."""
