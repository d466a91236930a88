"""Responses that are windows of time points: a head takes all of them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fmri2img import checkpoints_schema as schema
from fmri2img.cli import run
from fmri2img.datasets import Dataset, NamedSplit, SessionTrials, add_feature_space, build_dataset
from fmri2img.features.extractors import CaptionWords, Pixels
from fmri2img.models.loading import load_decoder
from fmri2img.trainer.stages import StageSpec, finetune


class Windows:
    """One subject, twenty trials of a session: three volumes of five voxels each."""

    voxels, sessions = 5, (1, 2)
    name, terms, provenance = "windows", "free", {"made": "for tests"}

    @property
    def subjects(self) -> dict[str, "Windows"]:
        return {"subj01": self}

    @property
    def splits(self) -> dict[str, NamedSplit]:
        return {}

    def voxel_table(self) -> dict[str, np.ndarray]:
        return {"roi": np.array(["V1"] * 5)}

    def session(self, session: int) -> SessionTrials:
        generator = np.random.default_rng(session)
        return SessionTrials(generator.normal(size=(20, 3, 5)).astype(np.float32), np.arange(20))

    def picture(self, nsd_id: int) -> np.ndarray:
        return np.random.default_rng(nsd_id).integers(0, 256, (8, 8, 3), dtype=np.uint8)

    def captions(self, nsd_id: int) -> list[str]:
        return [f"picture {'ball' if nsd_id % 2 else 'box'}"]

    def is_test(self, subject: str, nsd_id: int, session: int) -> bool:
        return nsd_id < 4


@pytest.fixture
def windows(tmp_path: Path) -> Path:
    path = build_dataset(Windows(), tmp_path / "data").path
    spaces: dict[str, Pixels | CaptionWords] = {"pixels-2": Pixels(size=2), "words": CaptionWords(size=8)}
    for name, extractor in spaces.items():
        told = extractor.model_dump(mode="json")
        shape, compute = extractor.shape, extractor.compute
        add_feature_space(path, name=name, shape=shape, dtype="float32", extractor=told, compute=compute)
    return path


def test_a_window_is_trained_on_and_reconstructed_from_whole(
    windows: Path, spec: Callable[..., Any], tmp_path: Path
) -> None:
    told: StageSpec = replace(spec("run", steps=3), data=str(windows))
    decoder = load_decoder(finetune(told))
    assert decoder.state_dict()["heads.subj01.weight"].shape[1] == 15
    assert schema.resolve(Path(told.run)).manifest.subjects["subj01"].voxels == 15
    assert Dataset.open(windows).voxels("subj01") == 5
    made = tmp_path / "made"
    where = ["--from", told.run, "--data", str(windows), "--out", str(made), "--workers", "0"]
    assert run(["reconstruct", *where]) == 0
    assert len(list(made.rglob("*.png"))) == 4
