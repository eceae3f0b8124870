"""Is the machine ready to capture its crash? Every condition, its evidence, and what mends it."""
