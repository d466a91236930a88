"""The trained models that come with the package do what their card says."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import fmri2img
from fmri2img.simulation.modelling import folders, measures, quality, renders
from fmri2img.simulation.modelling.card import write_card
from fmri2img.simulation.modelling.sampling import Models, from_embeddings
from fmri2img.simulation.modelling.training import MODELS
from fmri2img.simulation.scenes import render

WEIGHTS = Path(fmri2img.__file__).parent / "simulation" / "weights"
CARD = json.loads((WEIGHTS / "quality.json").read_text())
FRESH = 1 << 43
"""Pictures from this id on were neither trained on nor measured for the card."""


@pytest.fixture(scope="module")
def models() -> Models:
    return folders.load_all(WEIGHTS)


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return np.stack([render(renders.scene_of(0, FRESH + i)) for i in range(48)])


def test_they_are_whole_and_small() -> None:
    files = [path for path in WEIGHTS.rglob("*") if path.is_file()]
    assert {path.name for path in WEIGHTS.iterdir() if path.is_dir()} == set(MODELS)
    assert {path.suffix for path in files} == {".json", ".md", ".safetensors"}
    assert sum(path.stat().st_size for path in files) < 25e6
    assert not [path for path in files if path.suffix == ".json" and "_name_or_path" in path.read_text()]


def test_the_card_is_the_one_of_its_figures(models: Models) -> None:
    training = json.loads((WEIGHTS / "training.json").read_text())
    assert (WEIGHTS / "README.md").read_text() == write_card(CARD, training, folders.parameters(models))


def test_scenes_are_those_that_they_were_trained_on() -> None:
    training = json.loads((WEIGHTS / "training.json").read_text())
    assert training["scenes"] == renders.scenes_digest(training["seed"])


def test_the_autoencoder_keeps_pictures_as_well_as_the_card_says(
    models: Models, pictures: np.ndarray
) -> None:
    found = measures.psnr(quality.reconstructed(models, pictures), pictures)
    assert found == pytest.approx(CARD["vae"]["psnr"], abs=1)


def test_clip_tells_kinds_and_colours_as_well_as_the_card_says(models: Models, pictures: np.ndarray) -> None:
    scenes = [renders.scene_of(0, FRESH + i) for i in range(len(pictures))]
    found = quality.zero_shot(models, quality.embedded(models, pictures), scenes)
    assert CARD["clip"]["kind"] > 0.5
    for name in ("kind", "colour"):
        assert found[name] == pytest.approx(CARD["clip"][name], abs=0.2)  # 3 standard errors of 48


def test_unclip_makes_pictures_that_are_like_the_embeddings_asked_for(
    models: Models, pictures: np.ndarray
) -> None:
    asked = quality.embedded(models, pictures[:24])
    made = from_embeddings(models, torch.from_numpy(asked), guidance=2.0, steps=8)
    assert measures.two_way(measures.cosines(asked, quality.embedded(models, made))) > 0.9
