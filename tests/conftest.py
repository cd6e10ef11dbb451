"""Before torch is imported: threads that wait without spinning, as train.py has it; else other work on the same cores
makes the tests several times slower."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("MPLBACKEND", "Agg")
