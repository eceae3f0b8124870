"""Tests of the unwinder."""
