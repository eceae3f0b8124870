"""ELF vmcores: layout and reader."""
