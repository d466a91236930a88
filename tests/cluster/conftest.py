"""What the tests of real hosts share: three hosts as one Ray cluster, small data, the run that nothing disturbs."""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from fmri2img import checkpoints_schema as schema
from fmri2img.config import load_recipe
from fmri2img.datasets import build_dataset
from fmri2img.launch.features import cache_features
from fmri2img.simulation import Simulation, SimulationSpec
from fmri2img.trainer.stages import StageSpec, pretrain

STEPS = 60
VALUES = (
    f"pretraining.steps={STEPS}",
    "pretraining.global_batch=24",
    "pretraining.lanes=6",
    "pretraining.validation=0.2",
    "pretraining.validate_every=20",
    "pretraining.checkpoint_every=5",
    "pretraining.log_every=5",
    "decoder.dropout=0",
    "decoder.latent=8",
    "decoder.hidden=16",
    "decoder.blocks=1",
)


def _load(name: str) -> ModuleType:
    """A module beside this file; tests are no package."""
    spec = importlib.util.spec_from_file_location(f"cluster_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


lab_module = _load("lab")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = lab_module.missing()
    for item in items:
        if Path(__file__).parent not in item.path.parents:
            continue
        item.add_marker(pytest.mark.cluster)
        item.add_marker(pytest.mark.timeout(300))
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def lab() -> ModuleType:
    """The harness: `lab.hosts(3)`, `lab.wait_for(...)`."""
    return lab_module


@pytest.fixture
def three(lab: Any) -> Iterator[Any]:
    """Three hosts, each with a Ray node and one slot for a worker."""
    with lab.hosts(3) as made:
        made.start_ray()
        yield made


@dataclass(frozen=True)
class World:
    """A data set, and the words that pretrain on it."""

    data: Path

    def words(self, run: Path, *more: object) -> list[object]:
        values = [word for value in VALUES for word in ("--set", value)]
        return ["pretrain", "--data", self.data, "--out", run, "--hold-out", "subj01", *values, *more]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    data = tmp_path_factory.mktemp("world") / "data"
    voxels = {"subj01": 40, "subj02": 34, "subj03": 36}
    spec = SimulationSpec(subjects=voxels, sessions=2, trials_per_session=60, test_pictures=10)
    build_dataset(Simulation(spec), data, samples_per_shard=8)
    cache_features(load_recipe("default", values=VALUES), data)
    return World(data)


@pytest.fixture(scope="session")
def truth(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """The weights that one process makes, without Ray and DeepSpeed."""
    run = tmp_path_factory.mktemp("alone") / "run"
    plain = load_recipe("default", values=VALUES).model_dump(mode="json")
    spec = StageSpec(plain, str(world.data), ("subj02", "subj03"), str(run), engine="accelerate")
    return load_file(pretrain(spec) / "model.safetensors")


@pytest.fixture(scope="session")
def agrees(truth: dict[str, np.ndarray]) -> Callable[[Path], bool]:
    """`agrees(run)`: whether a run's finished weights are those of one process, to rounding."""

    def compare(run: Path) -> bool:
        made = load_file(schema.resolve(run).path / "model.safetensors")
        near = [
            np.abs(made[name] - value).max() <= 2e-5 * np.abs(value).max() for name, value in truth.items()
        ]
        return made.keys() == truth.keys() and all(near)

    return compare
