"""The audit on the simulation, where the truth is known: it clears an honest decoder and finds two that are not."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fmri2img.config import load_recipe
from fmri2img.datasets import Dataset, build_dataset
from fmri2img.evaluation.audit_results import Audit
from fmri2img.launch import reconstructor
from fmri2img.launch.features import cache_features
from fmri2img.models.loading import load_decoder
from fmri2img.simulation import Simulation, SimulationSpec
from fmri2img.trainer.stages import StageSpec, fit_ridge_baseline

SUBJECT = "subj01"
SPACES = ("caption-128", "pixels-16")
Plant = Callable[[Any, dict[str, torch.Tensor]], dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def ridge(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Folders: a simulated data set, and ridge regression of its one subject."""
    folder = tmp_path_factory.mktemp("honest")
    spec = SimulationSpec(
        subjects={SUBJECT: 400}, sessions=4, trials_per_session=120, test_pictures=30, noise_scale=0.5, seed=4
    )
    build_dataset(Simulation(spec), folder / "data")
    recipe = load_recipe("default")
    cache_features(recipe, folder / "data")
    plain = recipe.model_dump(mode="json")
    fit_ridge_baseline(StageSpec(plain, str(folder / "data"), (SUBJECT,), str(folder / "run")))
    return SimpleNamespace(data=folder / "data", run=folder / "run")


class Planted:
    """A decoder in whose predictions something else is put."""

    def __init__(self, honest: Any, plant: Plant) -> None:
        self.honest, self.plant = honest, plant

    def to(self, device: torch.device) -> "Planted":
        return self

    def predict(self, responses: dict[str, torch.Tensor]) -> Any:
        features = {name: torch.from_numpy(v) for name, v in self.plant(self.honest, responses).items()}
        return SimpleNamespace(features=features, retrieval={})

    def for_pictures(self, features: Any, generators: Any) -> Any:
        return features


def memoriser(data: Path) -> Plant:
    """Returns the features of the training picture that is nearest to an honest prediction."""
    dataset = Dataset.open(data)
    table = dataset.samples(SUBJECT, "train")
    known = {name: dataset.read_features(table, np.arange(len(table)), name) for name in SPACES}
    mean = known["pixels-16"].mean(0)

    def plant(honest: Any, responses: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
        guess = honest.predict(responses).features["pixels-16"].numpy() - mean
        rows, train = guess.reshape(len(guess), -1), (known["pixels-16"] - mean).reshape(len(table), -1)
        train = train / np.linalg.norm(train, axis=1, keepdims=True)
        chosen = (rows @ train.T).argmax(1)
        return {name: value[chosen] for name, value in known.items()}

    return plant


def generator_only(data: Path) -> Plant:
    """Returns plausible features, of a training picture, whatever the responses are."""
    dataset = Dataset.open(data)
    table = dataset.samples(SUBJECT, "train")

    def plant(honest: Any, responses: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
        rows = np.full(len(responses[SUBJECT]), 3)
        return {name: dataset.read_features(table, rows, name) for name in SPACES}

    return plant


@pytest.fixture
def audited(
    said: Callable[..., Any], ridge: SimpleNamespace, tmp_path: Path
) -> Iterator[Callable[..., Audit]]:
    """`audited(plant)`: reconstruct, evaluate and audit, with what is planted in the decoder's place."""
    patch = pytest.MonkeyPatch()

    def run(plant: Plant | None = None, flag: str = "pictures") -> Audit:
        if plant is not None:
            patch.setattr(reconstructor, "load_decoder", lambda path: Planted(load_decoder(path), plant))
        out = tmp_path / "made"
        told = said("reconstruct", "--from", ridge.run, "--data", ridge.data, "--out", out, "--workers", 0)
        assert told.code == 0, told.err
        told = said("evaluate", out, "--pool", 20, "--audit", flag)
        assert told.code == 0, told.err
        return Audit.read(out / "audit.json")

    yield run
    patch.undo()


def found(audit: Audit) -> set[str]:
    return {finding.name for finding in audit.findings if finding.found}


def test_an_honest_decoder_is_cleared_and_the_report_shows_it(
    audited: Callable[..., Audit], said: Callable[..., Any], tmp_path: Path
) -> None:
    audit = audited()
    assert found(audit) == set() and audit.pictures
    shuffled = audit.controls["shuffled"].metrics
    assert all(shuffled[name].low < 0.5 < shuffled[name].high for name in shuffled if "two_way" in name)
    assert sum(region.voxels for region in audit.regions) == 400
    assert said("report", tmp_path / "made", "--out", tmp_path / "report.html").code == 0
    html = (tmp_path / "report.html").read_text()
    assert all(f'id="{name}"' in html for name in ("audit", "regions", "retrieval"))
    assert "made: nothing found" in html
    assert said("evaluate", tmp_path / "made", "--pool", 20).code == 0
    assert not (tmp_path / "made" / "audit.json").exists()


def test_a_planted_memoriser_is_found(audited: Callable[..., Audit], ridge: SimpleNamespace) -> None:
    audit = audited(memoriser(ridge.data))
    assert "look-up" in found(audit) and "responses" not in found(audit)


def test_a_planted_generator_only_decoder_is_found(
    audited: Callable[..., Audit], ridge: SimpleNamespace
) -> None:
    audit = audited(generator_only(ridge.data), flag="features")
    assert {"responses", "clusters", "dimensions"} <= found(audit) and not audit.pictures
    assert "two_way_pixels" not in audit.by_cluster
