"""Pictures of validation reconstructions: seen beside reconstructed, and training that does not notice."""

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fmri2img.datasets import Dataset
from fmri2img.errors import StoppedError
from fmri2img.generators.pixels import LoadedPixels, PixelsGenerator
from fmri2img.models.decoder import MultiSubjectDecoder
from fmri2img.models.loading import load_decoder
from fmri2img.trainer import stages
from fmri2img.trainer.config import Recipe, TrainingConfig
from fmri2img.trainer.pictures import GAP, Pictures
from fmri2img.trainer.stages import finetune, pretrain
from fmri2img.trainer.watch import read_records

Spec = Callable[..., Any]
SIZE = 8  # of the tiny recipe's pictures, seen and made


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(path.read_bytes())))


def test_pictures_are_drawn_at_intervals_and_at_the_end(spec: Spec) -> None:
    finetune(spec("run", steps=5, pictures_every=2))
    run = Path(spec("run").run)
    names = ["pictures/step-00000002.png", "pictures/step-00000004.png", "pictures/step-00000005.png"]
    assert sorted(f"pictures/{path.name}" for path in (run / "pictures").iterdir()) == names
    told = [(r["step"], r["pictures/validation"]) for r in read_records(run) if "pictures/validation" in r]
    assert told == list(zip((2, 4, 5), names, strict=True))


def test_each_pair_is_the_seen_picture_beside_what_the_finished_model_makes_of_its_response(
    spec: Spec, data: Path
) -> None:
    wanted = spec("run", ("subj01", "subj02"), steps=3, pictures_every=3)
    decoder = load_decoder(pretrain(wanted))
    assert isinstance(decoder, MultiSubjectDecoder)
    recipe = Recipe.model_validate(wanted.recipe)
    material = stages.open_material(wanted, recipe, recipe.pretraining)
    decoder.eval()
    predicted = decoder.predict(
        {name: torch.from_numpy(rows.responses[:4]) for name, rows in material.validation.items()}
    )
    made = PixelsGenerator(space="pixels-2", size=SIZE).load("cpu").generate(predicted.features, [])
    made_of = (made * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    grid = read(Path(wanted.run) / "pictures" / "step-00000003.png")
    dataset, place = Dataset.open(data), 0
    for line, (subject, rows) in enumerate(sorted(material.validation.items())):
        table = dataset.samples(subject, "train")
        top = line * (SIZE + GAP)
        for n, nsd_id in enumerate(rows.nsd_ids[:4]):
            left = n * (2 * SIZE + GAP)
            seen = dataset.picture(table, int(np.flatnonzero(table.nsd_id == nsd_id)[0]))
            assert (grid[top : top + SIZE, left : left + SIZE] == seen).all()
            drawn = grid[top : top + SIZE, left + SIZE : left + 2 * SIZE].astype(int)
            assert abs(drawn - made_of[place]).max() <= 1  # the two were in batches of unlike size
            place += 1
        assert (grid[top + SIZE : top + SIZE + GAP] == 255).all()


def test_training_is_the_same_bits_with_pictures_and_without(
    spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = LoadedPixels.generate

    def careless(self: LoadedPixels, *arguments: Any) -> torch.Tensor:
        torch.rand(3)  # a generator that draws from the random state of all
        return honest(self, *arguments)

    without = finetune(spec("without"))
    monkeypatch.setattr(LoadedPixels, "generate", careless)
    # No step that follows seeds it anew: noise and masks would differ if pictures had touched it.
    before: list[torch.Tensor] = []
    draw = Pictures.draw

    def watched(*arguments: Any) -> str:
        before.append(torch.get_rng_state())
        path = draw(*arguments)
        assert torch.equal(torch.get_rng_state(), before[-1])
        return path

    monkeypatch.setattr(Pictures, "draw", watched)
    drawn = finetune(spec("with", pictures_every=1))
    assert len(before) == 8
    for name in ("model.safetensors", "state/optimiser.safetensors"):
        assert (drawn / name).read_bytes() == (without / name).read_bytes()


def test_only_the_subjects_that_are_trained_are_drawn(spec: Spec) -> None:
    parent = pretrain(spec("parent", ("subj01", "subj02"), steps=2))
    wanted = spec("child", ("subj03",), parent=parent, steps=2, trainable="head", pictures_every=2)
    finetune(dataclasses.replace(wanted, keep_heads=True))
    grid = read(Path(wanted.run) / "pictures" / "step-00000002.png")
    assert grid.shape[0] == SIZE


def test_what_fails_while_pictures_are_drawn_stops_the_run(
    spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any) -> None:
        raise ValueError("no such scheduler")

    monkeypatch.setattr(LoadedPixels, "generate", broken)
    with pytest.raises(ValueError, match="no such scheduler"):
        finetune(spec("run", pictures_every=2))


def test_a_disk_that_takes_no_picture_stops_the_run_resumable(
    spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = finetune(spec("whole", pictures_every=2))
    with monkeypatch.context() as patch:

        def full(*arguments: Any) -> None:
            raise OSError(28, "No space left on device")

        patch.setattr("fmri2img.trainer.pictures.write_atomic", full)
        with pytest.raises(
            StoppedError, match=r"step-00000004\.png cannot be written: No space left on device\."
        ):
            finetune(spec("run", pictures_every=4))
    again = finetune(spec("run", pictures_every=4))
    assert (again / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_pictures_without_validation_pictures_are_refused() -> None:
    with pytest.raises(
        ValueError, match="pictures_every 5 draws validation pictures, and there are none: set"
    ):
        TrainingConfig(pictures_every=5, validation=0)
