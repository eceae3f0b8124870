"""BPF programs: what they do, instruction by instruction."""
