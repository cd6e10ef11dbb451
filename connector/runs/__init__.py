"""A run directory: options, names, what is written and read back, lock, provenance."""
