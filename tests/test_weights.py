"""A model's name means one folder, wherever its files came from; what is missing is said by name."""

import json
from pathlib import Path

import pytest
from huggingface_hub import constants

from fmri2img.errors import InputError
from fmri2img.files import sha256_file
from fmri2img.weights import MODELS, files_in, folder_of, weights_digest

NAME = "openai/clip-vit-large-patch14"
NEEDS = ("config.json", "model*.safetensors")


def bring(folder: Path, *files: str) -> Path:
    for file in files or ("config.json", "model.safetensors"):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(file.encode())
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, and no hub."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.delenv(MODELS, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


def snapshot(cache: Path, commit: str = "a" * 40, revision: str = "main") -> Path:
    """The folder where the hub's client keeps one revision of the model."""
    home = cache / "models--openai--clip-vit-large-patch14"
    (home / "refs" / revision).parent.mkdir(parents=True, exist_ok=True)
    (home / "refs" / revision).write_text(commit)
    return home / "snapshots" / commit


def test_a_folder_is_its_own_name(tmp_path: Path, cache: Path) -> None:
    assert folder_of(str(bring(tmp_path / "clip")), needs=NEEDS) == tmp_path / "clip"


@pytest.mark.parametrize("below", ["openai--clip-vit-large-patch14", "openai/clip-vit-large-patch14"])
def test_folders_of_the_models_directory_take_the_place_of_the_hub(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, below: str
) -> None:
    bring(snapshot(cache))
    monkeypatch.setenv(MODELS, str(tmp_path / "models"))
    assert folder_of(NAME, needs=NEEDS).is_relative_to(cache)
    here = bring(tmp_path / "models" / below)
    assert folder_of(NAME, needs=NEEDS) == here


def test_what_the_hub_cache_holds_needs_no_network(cache: Path) -> None:
    bring(snapshot(cache))
    bring(snapshot(cache, "b" * 40, "refs/pr/7"))
    assert folder_of(NAME, needs=NEEDS).name == "a" * 40
    assert folder_of(f"{NAME}@refs/pr/7", needs=NEEDS).name == "b" * 40


def test_a_model_that_is_nowhere_says_what_to_bring_where(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        InputError, match=rf"bring config\.json, model\*\.safetensors into a folder.*{MODELS}"
    ):
        folder_of(NAME, needs=NEEDS)
    monkeypatch.setenv(MODELS, str(tmp_path / "models"))
    with pytest.raises(InputError, match=r"into .*models/openai--clip-vit-large-patch14"):
        folder_of(NAME, needs=NEEDS)


def test_pickles_are_no_weights(tmp_path: Path, cache: Path) -> None:
    bring(tmp_path / "old", "config.json", "pytorch_model.bin")
    with pytest.raises(InputError, match=r"old lacks model\*\.safetensors"):
        folder_of(str(tmp_path / "old"), needs=NEEDS)
    bring(snapshot(cache), "config.json", "pytorch_model.bin")
    with pytest.raises(InputError, match=r"lacks model\*\.safetensors|bring config"):
        folder_of(NAME, needs=NEEDS)


def test_every_part_of_a_sharded_model_is_needed(tmp_path: Path, cache: Path) -> None:
    folder = bring(tmp_path / "big", "config.json", "model-00001-of-00002.safetensors")
    parts = {
        "a": "model-00001-of-00002.safetensors",
        "b": "model-00002-of-00002.safetensors",
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
    with pytest.raises(InputError, match=r"lacks model-00002-of-00002\.safetensors"):
        folder_of(str(folder), needs=NEEDS)
    bring(folder, "model-00002-of-00002.safetensors")
    assert folder_of(str(folder), needs=NEEDS) == folder


@pytest.mark.parametrize("name", ["simulation/nothing", "simulation/../../files", "simulation/"])
def test_the_simulation_has_the_models_it_comes_with(name: str) -> None:
    with pytest.raises(InputError, match="comes with no model"):
        folder_of(name)


@pytest.mark.parametrize("name", ["nothing", "a/b/c", "/no/such/folder", "http://somewhere/model"])
def test_what_is_neither_folder_nor_hub_name_is_refused(cache: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"no folder .* and it is no hub name"):
        folder_of(name)


def test_weights_are_known_by_their_digests(tmp_path: Path) -> None:
    folder = bring(
        tmp_path / "clip", "config.json", "model.safetensors", "vae/model.safetensors", "notes.txt"
    )
    assert files_in(folder, ("model*.safetensors", "*/*.safetensors")) == [
        "model.safetensors",
        "vae/model.safetensors",
    ]
    assert weights_digest(folder, NEEDS) == {
        name: sha256_file(folder / name) for name in ("config.json", "model.safetensors")
    }
