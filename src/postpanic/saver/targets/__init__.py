"""Where a dump is saved to: each kind of target is one module, and knows nothing of the others."""
