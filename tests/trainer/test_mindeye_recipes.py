"""The shipped recipes of MindEye and MindEye2: as published where they say so, and small ones of them train."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from fmri2img.config import load_recipe, shipped_recipes
from fmri2img.datasets import add_feature_space, build_dataset
from fmri2img.errors import InputError
from fmri2img.models.loading import load_decoder
from fmri2img.models.mindeye import MindEyeDecoder
from fmri2img.models.mindeye_weights import NSD_VOXELS
from fmri2img.models.spaces import TargetSpace
from fmri2img.simulation.source import Simulation, SimulationSpec
from fmri2img.trainer.stages import StageSpec, finetune, pretrain

NAMES = [name for name in shipped_recipes() if name.startswith("mindeye")]
PUBLISHED = {
    "clip-tokens": (257, 768),
    "bigg-tokens": (256, 1664),
    "vae-latents": (4, 28, 28),
    "convnext-maps": (49, 512),
}
TINY = {"clip-tokens": (3, 8), "bigg-tokens": (3, 8), "vae-latents": (4, 8, 8), "convnext-maps": (4, 16)}
TRAINING = {
    "precision": "float32",
    "offload": "none",
    "zero_stage": 0,
    "steps": 8,
    "global_batch": 8,
    "lanes": 2,
    "checkpoint_every": 8,
    "learning_rate": 1e-3,
    "warmup": 0.0,
}


def small(name: str) -> dict[str, Any]:
    """What goes over a recipe so that it trains in seconds on features that stand for the published ones."""
    recipe = load_recipe(name)
    tokens = next(space for space, told in recipe.spaces.items() if told.directed)
    prior = {"depth": 1, "heads": 2, "head_width": 4, "timesteps": 10, "sampling_steps": 4}
    spaces: dict[str, Any] = {space: {"extractor": {"kind": "imported"}} for space in recipe.spaces}
    spaces[tokens]["prior"] = prior
    return {
        "spaces": spaces,
        "decoder": {"latent": 6, "hidden": 8},
        "pretraining": TRAINING,
        "finetuning": TRAINING | {"lanes": 1},
    }


def published(name: str, subjects: tuple[str, ...]) -> MindEyeDecoder:
    """The decoder at its published sizes, without memory."""
    recipe = load_recipe(name)
    with torch.device("meta"):
        spaces = {
            space: TargetSpace(
                space,
                PUBLISHED[space],
                np.zeros(PUBLISHED[space], np.float32),
                1.0,
                told.directed,
                told.prior,
            )
            for space, told in recipe.spaces.items()
        }
        decoder = recipe.decoder.build({subject: NSD_VOXELS[subject] for subject in subjects}, spaces)
    assert isinstance(decoder, MindEyeDecoder)
    return decoder


def millions(*modules: torch.nn.Module) -> float:
    return sum(parameter.numel() for module in modules for parameter in module.parameters()) / 1e6


def test_every_shipped_recipe_of_mindeye_is_one_of_its_two_architectures() -> None:
    assert set(NAMES) >= {"mindeye1", "mindeye2", "mindeye2-1h", "mindeye2-1024", "mindeye2-1024-nolow"}
    for name in NAMES:
        recipe = load_recipe(name)
        assert recipe.name == name and recipe.decoder.architecture == name[:8]


def test_parameters_at_published_sizes_are_the_published_ones() -> None:
    """As published notebooks print them: heads 64.4 M, the rest 1903.0 M, of which mixers 134.3 M; prior 259.9 M."""
    large = published("mindeye2", ("subj01",))
    assert millions(large.heads) == pytest.approx(64.4, abs=0.05)
    assert millions(large.backbone, large.branches) == pytest.approx(1903.0 - 134.3, abs=0.1)
    assert millions(large.priors) == pytest.approx(259.9, abs=0.05)
    small_one = published("mindeye2-1024-nolow", ("subj01",))
    mixers = 4 * 2 * (1024**2 + 1024) / 1e6
    assert millions(small_one.backbone, small_one.branches) == pytest.approx(453.4 - mixers, abs=0.1)
    assert millions(small_one.heads) == pytest.approx(16.1, abs=0.05)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set with features that stand for the published ones: of the picture, through a fixed random map."""
    path = tmp_path_factory.mktemp("simulated") / "set"
    people = {"subj01": 120, "subj02": 110}
    spec = SimulationSpec(subjects=people, sessions=2, trials_per_session=30, repeats=2, test_pictures=6)
    build_dataset(Simulation(spec), path)
    for name, shape in TINY.items():
        size = int(np.prod(shape))

        def compute(pictures: Any, captions: Any, size: int = size, shape: Any = shape) -> np.ndarray:
            flat = np.stack([np.asarray(picture)[::8, ::8].reshape(-1) / 255 - 0.5 for picture in pictures])
            mixed = flat @ np.random.default_rng(size).normal(size=(flat.shape[1], size)) / 6
            return mixed.reshape(-1, *shape).astype(np.float32)

        add_feature_space(
            path,
            name=name,
            shape=shape,
            dtype="float32",
            extractor={"kind": "imported"},
            compute=compute,
        )
    return path


@pytest.mark.parametrize("name", ["mindeye1", "mindeye2", "mindeye2-1024-nolow"])
def test_a_small_one_is_pretrained_and_finetuned_and_draws(data: Path, tmp_path: Path, name: str) -> None:
    over = tmp_path / "small.yaml"
    over.write_text(yaml.safe_dump(small(name)))
    recipe = load_recipe(name, config=over).model_dump(mode="json")
    spec = StageSpec(recipe, str(data), ("subj01",), str(tmp_path / "parent"), engine="accelerate")
    parent = pretrain(spec)
    child = finetune(replace(spec, subjects=("subj02",), run=str(tmp_path / "child"), parent=str(parent)))
    was, now = load_decoder(parent), load_decoder(child)
    assert isinstance(now, MindEyeDecoder) and now.subjects == ["subj02"] and was.subjects == ["subj01"]
    voxels = now.layout().voxels["subj02"]
    predicted = now.predict({"subj02": torch.randn(2, voxels, generator=torch.Generator().manual_seed(0))})
    drawn = now.for_pictures(predicted.features, [torch.Generator().manual_seed(n) for n in (1, 2)])
    assert {name: value.shape[1:] for name, value in drawn.items()} == {n: TINY[n] for n in now.branches}
    assert all(value.isfinite().all() for value in drawn.values())


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("pretraining.start=ridge", "set it to random"),
        ("finetuning.head=posterior", "set it to random"),
        ("decoder.blocks=4", "set blocks to 0"),
        ("decoder.architecture=residual", "set architecture"),
    ],
)
def test_what_the_published_networks_cannot_do_is_refused_when_the_recipe_is_read(
    value: str, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        load_recipe("mindeye2", values=[value])


def test_a_recipe_with_a_base_is_the_base_with_its_own_values_over_it(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("base: mindeye2-nolow\nname: own\ndecoder: {latent: 512}\n")
    recipe, base = load_recipe(str(own)), load_recipe("mindeye2")
    assert (recipe.name, recipe.decoder.latent, list(recipe.spaces)) == ("own", 512, ["bigg-tokens"])
    assert recipe.pretraining == base.pretraining
    own.write_text(f"base: {own}\nname: own\n")
    with pytest.raises(InputError, match="must be the name of another recipe"):
        load_recipe(str(own))


def test_settings_of_one_kind_do_not_stay_under_another(make_yaml: Callable[[str], Path]) -> None:
    path = make_yaml("spaces: {bigg-tokens: {extractor: {kind: imported}}}")
    assert load_recipe("mindeye2", config=path).spaces["bigg-tokens"].extractor.kind == "imported"


@pytest.fixture
def make_yaml(tmp_path: Path) -> Callable[[str], Path]:
    def make(text: str) -> Path:
        path = tmp_path / "over.yaml"
        path.write_text(text)
        return path

    return make
