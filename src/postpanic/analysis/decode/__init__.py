"""Symbols, source lines and machine code for what a log says: no dump is needed."""
