"""What a fault says: bad values, where they came from, and what they were meant to be."""
