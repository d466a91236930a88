"""Twenty times SIGKILL, at random moments of training and of writing checkpoints: the end is that of a quiet run."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fmri2img import checkpoints_schema as schema
from fmri2img.trainer.stages import StageSpec
from fmri2img.trainer.watch import read_records

SCRIPT = Path(__file__).parent / "killing.py"


@pytest.mark.slow
def test_twenty_kills_change_no_bit_of_the_finished_model(
    spec: Callable[..., StageSpec], tmp_path: Path
) -> None:
    steps = 240
    told = spec("run", steps=steps, checkpoint_every=2, validate_every=50, ema=0.9)
    (tmp_path / "spec.json").write_text(json.dumps(dataclasses.asdict(told)))
    result = subprocess.run(
        [sys.executable, "-P", str(SCRIPT), str(tmp_path / "spec.json"), "20", "5"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert result.returncode == 0, result.stderr
    killed_at = json.loads(result.stdout.splitlines()[-1])["killed_at"]
    assert len(killed_at) == 20 and len(set(killed_at)) > 10, killed_at
    whole, broken = (schema.resolve(tmp_path / f"run-{name}").path for name in ("whole", "broken"))
    for name in ("model.safetensors", "ema.safetensors", "state/optimiser.safetensors"):
        assert (whole / name).read_bytes() == (broken / name).read_bytes(), name
    trained = [r["step"] for r in read_records(tmp_path / "run-broken") if "train/loss" in r]
    assert trained == list(range(1, steps + 1))
    left = [path.name for path in broken.parent.iterdir() if path.name.startswith(".")]
    assert left == []
