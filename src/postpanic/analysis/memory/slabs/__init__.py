"""The slab allocator (SLUB): its caches, slabs and objects, and which of these are free."""
