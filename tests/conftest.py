"""What holds for every test: no network, one thread, and the repository's own folders off `sys.path`."""

import importlib.util
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent

# One thread per process: results of sums depend on the number of threads, and clusters start many processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("DS_ACCELERATOR", "cpu")

# `python -m pytest` puts the repository root there, and transformers would take our datasets/ for another package.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]


@pytest.fixture(scope="session")
def mindeye_published() -> ModuleType:
    """Made-up files of published decoders, and what public code computes of them: `models/mindeye_published.py`."""
    spec = importlib.util.spec_from_file_location(
        "mindeye_published", ROOT / "tests" / "models" / "mindeye_published.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def handler() -> Iterator[None]:
    """SIGTERM is handled as in the command."""
    from fmri2img import cli

    before = signal.signal(signal.SIGTERM, cli._terminated)
    yield
    signal.signal(signal.SIGTERM, before)
