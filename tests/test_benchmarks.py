"""Every benchmark runs at its tiniest size and prints JSON of finite figures.

Left out: `miyawaki.py`, which needs measured data, `nsd_build.py`, which makes gigabytes, and `pictures.py`, which
needs a demo and runs after the demo's own test.
"""

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
TINY = {
    "build.py": "--trials 90 --voxels 40 --rounds 2",
    "loader.py": "--pictures 24 --voxels 40 --tokens 2 3 --batch 16 --seconds 0.02 --rounds 1 --epochs 0",
    "train_step.py": "--steps 2 --blocks 1 --latent 8 --voxels 60 --batch 16 --threads 1",
    "pretrain.py": "--blocks 2 --block 2 --batch 8 --processes 2 --sessions 1 --voxels 60 --latent 8 --width 16 "
    "--layers 1",
    "reconstruct.py": "--size tiny --pictures 4 --batch 2 --steps 2 --rounds 1 "
    "--variants plain-1-thread ours-in-process",
    "metrics.py": "--pictures 4",
    "scaling.py": "--workers 2 --stages 2 --steps 15 --voxels 60 --latent 8 --batch 16",
    "scaling_model.py": "--gpus 1 8 --subjects 8",
    "mindeye2_step.py": "--small --steps 1 --warmup 1 --variants bfloat16 float32+compile",
}
ELSEWHERE = {"miyawaki.py", "nsd_build.py", "pictures.py"}

pytestmark = pytest.mark.slow


@cache
def run(*command: str) -> dict[str, Any]:
    """The report of a benchmark, started as its documentation says."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def tiny(name: str) -> dict[str, Any]:
    """The report of a script at its tiniest size."""
    return run(sys.executable, str(FOLDER / name), *TINY[name].split())


def numbers(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Every number of a report with the way to it."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from numbers(inner, f"{path}.{key}")
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from numbers(inner, f"{path}[{place}]")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path, value


def test_no_benchmark_is_forgotten() -> None:
    scripts = {path.name for path in FOLDER.glob("*.py") if "__main__" in path.read_text()}
    assert scripts == {*TINY, *ELSEWHERE}


@pytest.mark.parametrize("name", TINY)
def test_a_benchmark_prints_finite_figures(name: str) -> None:
    found = dict(numbers(tiny(name)))
    assert len(found) > 10
    assert [path for path, value in found.items() if not math.isfinite(value)] == []


def test_the_full_step_of_mindeye2_has_the_published_parameters_and_needs_no_project() -> None:
    code = (
        "import sys, torch; sys.path.insert(0, sys.argv[1]); from mindeye2_model import *\n"
        "from mindeye2_parts import parameters\n"
        "with torch.device('meta'): model = MindEye2(Sizes({'subj01': VOXELS['subj01']}))\n"
        "import json, mindeye2_step\n"
        "named = {name.split('.')[0] for name in sys.modules} & {'fmri2img', 'ray', 'deepspeed', 'accelerate'}\n"
        "print(json.dumps({'counts': parameters(model), 'imported': sorted(named)}))"
    )
    told = run(sys.executable, "-c", code, str(FOLDER))
    published = {"heads": 64.4, "backbone": 1903.0, "prior": 259.9}  # million, one subject
    assert {name: round(count / 1e6, 1) for name, count in told["counts"].items()} == published
    assert told["imported"] == []


def test_under_torchrun_the_step_of_mindeye2_has_the_negatives_of_all_ranks() -> None:
    words = "--small --steps 1 --warmup 1 --variants bfloat16"
    script = str(FOLDER / "mindeye2_step.py")
    report = run(
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", script, *words.split()
    )
    both, alone = report["variants"][0], tiny("mindeye2_step.py")["variants"][0]
    assert report["processes"] == 2
    assert both["samples_per_second"] == pytest.approx(2 * 8 / both["seconds_per_step"])
    # The contrast among 16 rows instead of 8 is larger by log 2 at random, and stands twice in a rank's loss.
    assert both["loss"] - alone["loss"] > math.log(2)


def test_published_operations_are_near_what_their_authors_give() -> None:
    frozen = tiny("pretrain.py")["published"]["frozen_gflop"]
    # A multiplication with its addition is one there: OpenCLIP's table has 483.96 thousand million, ConvNeXt's 61.0.
    assert frozen["bigg_image_tower"] == pytest.approx(2 * 483.96, rel=0.01)
    assert frozen["convnext_xl_twice"] == pytest.approx(2 * 2 * 61.0, rel=0.01)
