"""A tiny simulated world that the tests of jobs share: data, a pretrained and a finetuned decoder, one Ray cluster."""

import io
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from fmri2img.cli import run
from fmri2img.config import load_recipe
from fmri2img.datasets import build_dataset
from fmri2img.launch.cluster import Place, cluster
from fmri2img.launch.features import cache_features
from fmri2img.simulation import Simulation, SimulationSpec
from fmri2img.trainer.stages import StageSpec, finetune, pretrain
from fmri2img.trainer.watch import read_records

VOXELS = {"subj01": 40, "subj02": 34, "subj03": 36}
STEPS = 30
VALUES = (
    f"pretraining.steps={STEPS}",
    "pretraining.global_batch=16",
    "pretraining.validation=0.2",
    "pretraining.validate_every=10",
    "pretraining.checkpoint_every=5",
    "pretraining.log_every=5",
    "finetuning.steps=4",
    "finetuning.global_batch=16",
    "decoder.latent=8",
    "decoder.hidden=16",
    "decoder.blocks=1",
)


@dataclass(frozen=True)
class Said:
    """What a command left: exit code, standard output, standard error."""

    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The one line on standard error."""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        return lines[0].removeprefix("fmri2img: error: ")


@pytest.fixture(scope="session")
def said() -> Callable[..., Said]:
    """`said(*words)`: run a command in this process."""

    def run_it(*words: object) -> Said:
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            code = run([str(word) for word in words])
        return Said(code, out.getvalue(), err.getvalue())

    return run_it


@pytest.fixture(scope="session")
def flags() -> list[str]:
    """Flags of a recipe that is trained in seconds."""
    return [word for value in VALUES for word in ("--set", value)]


@dataclass(frozen=True)
class World:
    """Folders: a data set with the default recipe's features, a run of subj02 and subj03, one of subj01 from it."""

    data: Path
    pretrained: Path
    finetuned: Path


@dataclass
class Faults:
    """Kill one of a run's workers, once, when `step` has been logged."""

    run: Path
    step: int = 10
    rank: int = 1
    killed: list[int] = field(default_factory=list)

    def at(self, step: int) -> "Faults":
        self.step = step
        return self

    def kill(self, rank: int) -> "Faults":
        self.rank = rank
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def _watch(self) -> None:
        from fmri2img.launch.pretraining import read_workers

        for _ in range(6000):
            if any(record["step"] >= self.step for record in read_records(self.run)):
                pid = read_workers(self.run)[-1][self.rank]["pid"]
                os.kill(pid, signal.SIGKILL)
                self.killed.append(pid)
                return
            time.sleep(0.01)


@pytest.fixture
def faults() -> type[Faults]:
    return Faults


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    spec = SimulationSpec(subjects=VOXELS, sessions=2, trials_per_session=60, test_pictures=10)
    build_dataset(Simulation(spec), folder / "data", samples_per_shard=8)
    recipe = load_recipe("default", values=VALUES)
    cache_features(recipe, folder / "data")
    plain, data = recipe.model_dump(mode="json"), str(folder / "data")
    pretrain(StageSpec(plain, data, ("subj02", "subj03"), str(folder / "pre"), engine="accelerate"))
    finetune(StageSpec(plain, data, ("subj01",), str(folder / "fine"), (1,), str(folder / "pre")))
    return World(folder / "data", folder / "pre", folder / "fine")


@pytest.fixture
def data(world: World, tmp_path: Path) -> Path:
    """A copy of the world's data to damage."""
    shutil.copytree(world.data, tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture(scope="session")
def two_workers() -> Iterator[None]:
    """One Ray cluster with two workers for all tests that only need some."""
    with cluster(Place(2)):
        yield


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Set torch's number of threads for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
