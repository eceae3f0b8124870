"""The capture kernel: what it is told, how it is loaded, and whether what is loaded is right."""
