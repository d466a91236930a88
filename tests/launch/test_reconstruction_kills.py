"""A reconstruction whose driver is killed again and again ends in the bytes of one that was left alone."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fmri2img.cli import run
from fmri2img.launch.items import plan_job

pytestmark = pytest.mark.slow
SETTINGS: dict[str, Any] = {
    "split": "test",
    "repeats": "single",
    "samples": 4,
    "batch": 2,
}
FLAGS = [word for name, value in SETTINGS.items() for word in (f"--{name}", str(value))]
UNITS = 10 * 3 * 4 // 2  # pictures, repeats, samples
KILLS = 20


@pytest.fixture(scope="module")
def undisturbed(world: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    assert run(words(world, out, workers=0)) == 0
    return content(out)


def words(world: Any, out: Path, *, workers: int) -> list[str]:
    places = ["--from", world.finetuned, "--data", world.data, "--out", out, "--workers", workers]
    return ["reconstruct", *map(str, places), *FLAGS]


def content(out: Path) -> dict[str, bytes]:
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name != "source.json"
    }


def test_drivers_killed_at_random_moments(undisturbed: dict[str, bytes], world: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    job = plan_job(world.finetuned, world.data, subjects=["subj01"], **SETTINGS)
    told = {"checkpoint": str(world.finetuned), "data": str(world.data), "out": str(out)}
    (tmp_path / "told.json").write_text(json.dumps({**told, "job": job.model_dump_json()}))
    script = Path(__file__).with_name("killing.py")
    command = [sys.executable, str(script), str(tmp_path / "told.json"), str(KILLS), "7"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    left = json.loads(done.stderr)
    assert (
        len(left) == KILLS and left == sorted(left) and 0 < left[-1] < UNITS
    )  # every attempt went on from the one before
    assert content(out) == undisturbed
