"""Crash a virtual machine on purpose and judge what came out."""
