"""Stacks as tables: what ``bt`` shows of them."""
