"""What the kernel left in its memory: symbols, types, page tables, unwind tables, log."""
