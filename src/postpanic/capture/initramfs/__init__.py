"""The image that the capture kernel runs: what goes into it, how it is packed."""
