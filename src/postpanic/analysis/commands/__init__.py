"""The commands of the prompt: each computes an answer from a dump, and prints nothing."""
