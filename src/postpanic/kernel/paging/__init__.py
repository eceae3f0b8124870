"""Page tables: from virtual to physical addresses, one module per architecture."""
