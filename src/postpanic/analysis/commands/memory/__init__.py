"""Commands that show memory: addresses and their translation, contents, page frames, slabs, searches."""
