"""Memory as the kernel manages it: address spaces, page frames, slabs, free lists, searches, and what an address is."""
