"""A tiny data set whose responses say something of the pictures, a recipe for it, and a listener that kills runs."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from fmri2img.datasets import NamedSplit, SessionTrials, add_feature_space, build_dataset
from fmri2img.features.extractors import CaptionWords, Pixels
from fmri2img.trainer.stages import StageSpec
from fmri2img.trainer.watch import Record

COLOURS = ["red", "green", "blue", "grey"]
THINGS = ["ball", "box", "cone"]


def picture(nsd_id: int) -> np.ndarray:
    return np.random.default_rng([1, nsd_id]).integers(0, 256, (8, 8, 3), dtype=np.uint8)


@dataclass
class LinearSubject:
    """Responses are a fixed random map of the picture's pixels plus noise; thirty trials a session."""

    seed: int
    voxels: int
    sessions: list[int] = field(default_factory=lambda: [1, 2])

    def voxel_table(self) -> dict[str, np.ndarray]:
        return {"roi": np.array(["V1"] * self.voxels), "noise_ceiling": np.full(self.voxels, 0.5)}

    def session(self, session: int) -> SessionTrials:
        generator = np.random.default_rng([self.seed, session])
        weight = np.random.default_rng(self.seed).normal(size=(192, self.voxels)) / 14
        nsd_ids = generator.permutation(np.arange(30) % 24 + 6 * (session - 1))
        seen = np.stack([picture(n).reshape(-1) / 74.0 - 1.7 for n in nsd_ids.tolist()])
        noise = generator.normal(size=(30, self.voxels))
        return SessionTrials((seen @ weight + noise).astype(np.float32), nsd_ids)


@dataclass
class LinearSource:
    """Three subjects of unequal width; pictures below 4 are test pictures."""

    name: str = "linear"
    terms: str = "free"
    provenance: dict[str, str] = field(default_factory=lambda: {"made": "for tests of training"})
    subjects: dict[str, LinearSubject] = field(
        default_factory=lambda: {f"subj0{n}": LinearSubject(n, 9 - n) for n in (3, 1, 2)}
    )

    @property
    def splits(self) -> dict[str, NamedSplit]:
        return {}

    def picture(self, nsd_id: int) -> np.ndarray:
        return picture(nsd_id)

    def captions(self, nsd_id: int) -> list[str]:
        return [f"a {COLOURS[nsd_id % 4]} {THINGS[nsd_id % 3]}"]

    def is_test(self, subject: str, nsd_id: int, session: int) -> bool:
        return nsd_id < 4


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built data set with the two feature spaces of the recipe, not to be changed."""
    path = build_dataset(LinearSource(), tmp_path_factory.mktemp("data") / "linear", samples_per_shard=8).path
    spaces: dict[str, Pixels | CaptionWords] = {"pixels-2": Pixels(size=2), "words": CaptionWords(size=8)}
    for name, extractor in spaces.items():
        add_feature_space(
            path,
            name=name,
            shape=extractor.shape,
            dtype="float32",
            extractor=extractor.model_dump(mode="json"),
            compute=extractor.compute,
        )
    return path


TRAINING = {
    "steps": 8,
    "global_batch": 8,
    "lanes": 2,
    "learning_rate": 1e-2,
    "noise": 0.5,
    "validation": 0.2,
    "validate_every": 3,
    "checkpoint_every": 2,
    "log_every": 1,
    "zero_stage": 0,
}
RECIPE: dict[str, Any] = {
    "name": "tiny",
    "spaces": {
        "pixels-2": {"extractor": {"kind": "pixels", "size": 2}},
        "words": {
            "extractor": {"kind": "caption-words", "size": 8},
            "losses": {"mse": {}, "contrastive": {"weight": 0.3}},
        },
    },
    "decoder": {"latent": 6, "hidden": 10, "blocks": 1, "dropout": 0.2},
    "pretraining": TRAINING,
    "finetuning": TRAINING,
    "generator": {"kind": "pixels", "space": "pixels-2", "size": 8},
}


def _with_prior_and_cycle(recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe with a small diffusion prior on words, and with responses rebuilt and sent through a cycle."""
    recipe["spaces"]["words"]["losses"].setdefault("prior", {})
    small = {"depth": 1, "heads": 2, "head_width": 4, "width": 6, "timesteps": 8, "sampling_steps": 3}
    recipe["spaces"]["words"]["prior"] = small
    recipe["decoder"]["rebuild"] = True
    recipe["losses"] = {"response": {"end": 0.5}, "cycle": {"weight": 0.5}}
    return recipe


@pytest.fixture
def with_prior_and_cycle() -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Gives a recipe a prior and a cycle."""
    return _with_prior_and_cycle


@pytest.fixture
def recipe() -> Callable[..., dict[str, Any]]:
    """`recipe(steps=4, ...)`: the tiny recipe with other values in both stages of training."""

    def make(**changes: Any) -> dict[str, Any]:
        made = copy.deepcopy(RECIPE)
        for stage in ("pretraining", "finetuning"):
            made[stage].update(changes)
        return made

    return make


@pytest.fixture
def spec(data: Path, tmp_path: Path, recipe: Callable[..., dict[str, Any]]) -> Callable[..., StageSpec]:
    """`spec("name", subjects, steps=4, ...)`: what a stage is told, for a run folder of that name."""

    def make(
        run: str, subjects: tuple[str, ...] = ("subj01",), parent: Path | None = None, **changes: Any
    ) -> StageSpec:
        return StageSpec(
            recipe(**changes),
            str(data),
            subjects,
            str(tmp_path / run),
            parent=None if parent is None else str(parent),
            engine="accelerate",
        )

    return make


class Killed(BaseException):
    """What a test throws into a run."""


@dataclass
class Faults:
    """A listener that kills the run at the first training record of a step."""

    step: int = -1

    def kill_at(self, step: int) -> Faults:
        self.step = step
        return self

    def __call__(self, record: Record) -> None:
        if record["step"] == self.step and "train/loss" in record:
            raise Killed


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture
def killed() -> type[BaseException]:
    return Killed


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCRIPT = Path(__file__).parent / "processes.py"


def run_group(script: Path, folder: Path, world: int, *words: object, seconds: float) -> None:
    """Run `script FOLDER RANK WORLD WORDS` as the processes of one gloo group; all must end well, and in time."""
    binaries = str(Path(sys.executable).parent)  # where ninja lies
    shared = {
        **os.environ,
        "PATH": os.pathsep.join([binaries, os.environ["PATH"]]),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": "lo",
        "DS_ACCELERATOR": "cpu",
    }
    logs = [folder / f"log-{rank}.txt" for rank in range(world)]
    started = []
    for rank, log in enumerate(logs):
        command = [sys.executable, "-P", str(script), *(str(word) for word in (folder, rank, world, *words))]
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        with open(log, "w") as file:
            started.append(subprocess.Popen(command, env=shared | place, stdout=file, stderr=file))
    late = time.monotonic() + seconds
    try:
        while any(process.poll() is None for process in started) and time.monotonic() < late:
            if any(process.poll() for process in started):
                break  # the others wait for it in vain
            time.sleep(0.1)
    finally:
        for process in started:
            process.kill()
            process.wait()
    told = "\n".join(log.read_text()[-2000:] for log in logs)
    assert [process.returncode for process in started] == [0] * world, told


@pytest.fixture
def group() -> Callable[..., None]:
    """`group(script, folder, world, *words, seconds=60)`: see `run_group`."""
    return run_group


@pytest.fixture(scope="session")
def processes() -> ModuleType:
    """The material of `processes.py`, for a single process to check two with."""
    return _load(SCRIPT)


@pytest.fixture(scope="session")
def two_processes(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """A folder with what two processes of one gloo group wrote; run once for all tests."""
    folder = tmp_path_factory.mktemp("two")
    runs = []
    for stage in (2, 3):
        recipe = copy.deepcopy(RECIPE)
        recipe["pretraining"].update(zero_stage=stage, steps=6, keep=9, micro_batches=2)
        recipe["decoder"]["dropout"] = 0.0  # each rank drops units of its own
        # Responses are mixed in the first half; what predicts words is idle there, the projector in the second.
        recipe["spaces"]["words"]["losses"] = {
            "mse": {"begin": 0.5},
            "bimixco": {"weight": 0.3, "temperature": 0.1, "mixed": 1.0, "end": 0.5},
            "prior": {"begin": 0.3},
        }
        _with_prior_and_cycle(recipe)
        # Drawing pictures samples from the prior, whose parameters are in parts at stage 3.
        recipe["pretraining"]["pictures_every"] = 3 if stage == 3 else 0
        recipe["spaces"]["pixels-2"]["losses"] = {"mse": {}, "softclip": {"weight": 0.1, "temperature": 0.1}}
        run = {"recipe": recipe, "data": str(data), "subjects": ["subj01", "subj02"]}
        straight, again = str(folder / f"straight-{stage}"), str(folder / f"again-{stage}")
        runs.append({"spec": {**run, "run": straight}, "again": again, "first": "step-00000002"})
    (folder / "runs.json").write_text(json.dumps(runs))
    run_group(SCRIPT, folder, 2, seconds=550)
    return folder
