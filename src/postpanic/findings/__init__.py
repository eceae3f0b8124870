"""Results as values: what a command found, cell by cell, and why a cell is missing."""
