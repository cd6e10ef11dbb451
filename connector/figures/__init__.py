"""Arrays in, matplotlib Figure out; no files, no training."""
