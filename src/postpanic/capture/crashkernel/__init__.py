"""The reservation for the capture kernel: what is asked for, what the kernel makes of it, how much is needed."""
