"""The reading benchmark runs, tiny, and prints JSON alone with every figure it promises."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "loader.py"


@pytest.mark.slow
def test_the_benchmark_of_reading_prints_its_figures(tmp_path: Path) -> None:
    tiny = {"pictures": 24, "voxels": 40, "batch": 16, "seconds": 0.02, "rounds": 1, "epochs": 0}
    options = [f"--{name}={value}" for name, value in tiny.items()] + ["--tokens", "2", "8"]
    command = [sys.executable, str(SCRIPT), *options, "--work", str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert set(told["samples_per_second"]) == set(told["first_batch_seconds"])
    for speed in told["samples_per_second"].values():
        assert 0 < speed["min"] <= speed["median"] <= speed["max"]
    assert all(value > 0 for value in told["ratios"].values())
    assert set(told["features"]["GB_per_second"]) == {"ours", "page cache"}
    assert told["verify"]["MB_per_cpu_second"]["verify"]["median"] > 0
    assert not list(tmp_path.iterdir())
