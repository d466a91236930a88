"""What holds for every test: no network, one thread, and the repository's own folders off `sys.path`."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# One thread per process: results of sums depend on the number of threads, and clusters start many processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("DS_ACCELERATOR", "cpu")

# `python -m pytest` puts the repository root there, and transformers would take our datasets/ for another package.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
