"""The feature job: the same bytes whoever computes them, whatever dies on the way, and only of the weights it names."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fmri2img.config import load_recipe
from fmri2img.datasets import Dataset, build_dataset, verify
from fmri2img.errors import InputError
from fmri2img.features.extractors import ClipText, Vae
from fmri2img.launch import features
from fmri2img.launch.cluster import Place
from fmri2img.launch.features import FeatureSettings, cache_features
from fmri2img.simulation import Simulation, SimulationSpec

RECIPE = """
name: tiny
spaces:
  pixels-8: {{extractor: {{kind: pixels, size: 8}}}}
  tokens: {{extractor: {{kind: clip-image, model: {clip}, output: tokens}}}}
  text: {{extractor: {{kind: clip-text, model: {clip}}}}}
  latents: {{extractor: {{kind: vae, model: {vae}}}}}
  large: {{extractor: {{kind: vae, model: {vae}, size: 256}}}}
generator: {{kind: pixels, space: pixels-8, size: 64}}
"""
BATCH = 4
SPREAD = ("large",)  # one, because workers take seconds to start anew for each; large, to be killed within


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP and a tiny autoencoder."""
    writers = Path(__file__).parents[1] / "features" / "conftest.py"
    spec = importlib.util.spec_from_file_location("tiny_models", writers)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder = tmp_path_factory.mktemp("models")
    module.write_clip(folder / "clip")
    module.write_vae(folder / "vae")
    return folder


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of two subjects without features."""
    spec = SimulationSpec(
        subjects={"subj01": 34, "subj02": 32}, sessions=1, trials_per_session=48, test_pictures=6
    )
    return build_dataset(Simulation(spec), tmp_path_factory.mktemp("bare") / "data", samples_per_shard=5).path


@pytest.fixture
def data(bare: Path, tmp_path: Path) -> Path:
    return shutil.copytree(bare, tmp_path / "data")


@pytest.fixture
def written(models: Path, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE.format(clip=models / "clip", vae=models / "vae"))
    return path


@pytest.fixture
def recipe(written: Path) -> Any:
    return load_recipe(str(written))


@pytest.fixture(scope="session")
def truth(bare: Path, models: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Every file of the data set with features of `SPREAD` that one undisturbed process made."""
    folder = tmp_path_factory.mktemp("truth")
    (folder / "tiny.yaml").write_text(RECIPE.format(clip=models / "clip", vae=models / "vae"))
    shutil.copytree(bare, folder / "data")
    settings = FeatureSettings(batch=BATCH, spaces=SPREAD)
    cache_features(load_recipe(str(folder / "tiny.yaml")), folder / "data", settings)
    assert verify(folder / "data") == []
    return bytes_of(folder / "data")


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_features_are_what_the_extractor_makes_of_each_picture(data: Path, recipe: Any, models: Path) -> None:
    settings = FeatureSettings(batch=BATCH, spaces=("pixels-8", "text", "latents"))
    dataset = cache_features(recipe, data, settings)
    samples = dataset.samples("subj02", "train")
    rows = range(0, len(samples), 3)
    pictures = [dataset.picture(samples, i) for i in rows]
    captions = [dataset.captions(samples, i) for i in rows]
    text, latents = ClipText(model=str(models / "clip")), Vae(model=str(models / "vae"))
    for name, extractor in {"text": text, "latents": latents}.items():
        found = dataset.read_features(samples, rows, name)
        np.testing.assert_allclose(found, extractor.load()(pictures, captions), rtol=1e-4, atol=1e-5)
    assert set(dataset.feature_spaces["text"].extractor["weights"]) == {"model.safetensors"}


@pytest.mark.slow
def test_one_worker_makes_the_same_bytes(
    data: Path, recipe: Any, truth: dict[str, bytes], two_workers: None
) -> None:
    cache_features(recipe, data, FeatureSettings(Place(1), batch=BATCH, spaces=SPREAD))
    assert bytes_of(data) == truth


@pytest.mark.slow
def test_four_workers_of_the_command_make_the_same_bytes(
    data: Path, written: Path, truth: dict[str, bytes]
) -> None:
    done = subprocess.run([*command(data, written), "4"], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert bytes_of(data) == truth


def command(data: Path, recipe: Path) -> list[str]:
    """The command that spreads features over workers, up to their number."""
    words = [str(Path(sys.executable).parent / "fmri2img"), "features", str(data), "--recipe", str(recipe)]
    return [*words, "--batch", str(BATCH), "--space", *SPREAD, "--workers"]


class Killing:
    """Kills one Ray worker of the job, when the first column of a space is there."""

    def __init__(self, data: Path, space: str) -> None:
        self.data, self.space, self.killed = data, space, list[int]()

    def __enter__(self) -> Killing:
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *problem: object) -> None:
        self.thread.join(timeout=60)

    def _watch(self) -> None:
        for _ in range(6000):
            if any(self.data.glob(f"*/*.{self.space}.tar")):
                self.killed = descendants("ray::RemoteFeatureWorker")[:1]
                for pid in self.killed:
                    os.kill(pid, signal.SIGKILL)
                return
            time.sleep(0.005)


def descendants(name: str) -> list[int]:
    """Processes that this one started, directly or not, whose command line starts so."""
    parents, named = dict[int, int](), list[int]()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            stat, line = (path / "stat").read_text(), (path / "cmdline").read_bytes()
        except OSError:
            continue  # it ended between the two
        parents[int(path.name)] = int(stat.rpartition(")")[2].split()[1])
        if line.startswith(name.encode()):
            named.append(int(path.name))

    def ours(pid: int) -> bool:
        while pid > 1 and pid != os.getpid():
            pid = parents.get(pid, 0)
        return pid == os.getpid()

    return [pid for pid in named if ours(pid)]


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced(
    data: Path, recipe: Any, truth: dict[str, bytes], two_workers: None
) -> None:
    with Killing(data, "large") as killing:
        cache_features(recipe, data, FeatureSettings(Place(2), batch=BATCH, spaces=SPREAD))
    assert killing.killed
    assert bytes_of(data) == truth


@pytest.mark.slow
def test_a_driver_that_is_killed_is_taken_up_by_the_same_command(
    data: Path, written: Path, truth: dict[str, bytes]
) -> None:
    words = command(data, written)
    for workers, columns in (("2", 1), ("0", 4)):
        job = subprocess.Popen([*words, workers], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        while job.poll() is None and len(list(data.glob("*/*.large.tar"))) < columns:
            time.sleep(0.005)
        job.kill()
        said = job.communicate()[0].decode()
        assert job.returncode == -signal.SIGKILL, said
        assert not goes_on(data), "a worker outlived its driver"
    done = subprocess.run([*words, "0"], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert bytes_of(data) == truth


def goes_on(data: Path) -> bool:
    """Whether columns are still being written, a moment after their driver is gone."""
    time.sleep(1.5)
    before = sorted(data.glob("*/*.large*"))
    time.sleep(1.0)
    return sorted(data.glob("*/*.large*")) != before


def test_weights_that_changed_under_their_name_are_noticed(data: Path, models: Path, tmp_path: Path) -> None:
    shutil.copytree(models, tmp_path / "mine")
    (tmp_path / "r.yaml").write_text(RECIPE.format(clip=tmp_path / "mine/clip", vae=tmp_path / "mine/vae"))
    recipe = load_recipe(str(tmp_path / "r.yaml"))
    settings = FeatureSettings(batch=BATCH, spaces=("text",))
    cache_features(recipe, data, settings)
    manifest = (data / "dataset.json").read_bytes()
    weights = tmp_path / "mine" / "clip" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-4] + b"\0\0\0\0")
    with pytest.raises(InputError, match=r"text made with other weights than .*clip holds now \(SHA-256"):
        cache_features(recipe, data, settings)
    shutil.rmtree(tmp_path / "mine")  # cached features do without
    cache_features(recipe, data, settings)
    assert (data / "dataset.json").read_bytes() == manifest


def test_what_is_there_is_not_computed_again_and_not_in_another_type(
    data: Path, recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = FeatureSettings(batch=BATCH, spaces=("latents",), dtype="float16")
    dataset = cache_features(recipe, data, settings)
    assert list(dataset.feature_spaces) == ["latents"]
    assert dataset.feature_spaces["latents"].dtype == "float16"
    monkeypatch.setattr(Vae, "load", lambda *_, **__: pytest.fail("computed again"))
    cache_features(recipe, data, FeatureSettings(spaces=("latents",)))
    with pytest.raises(InputError, match="latents as float16, and --dtype asks for float32"):
        cache_features(recipe, data, FeatureSettings(spaces=("latents",), dtype="float32"))


def test_the_job_says_what_it_writes_and_how_long_it_takes(
    data: Path, written: Path, said: Callable[..., Any]
) -> None:
    done = said("features", data, "--recipe", written, "--space", "tokens", "--batch", 2)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert any("pictures of" in line and "17 × 12 as float32" in line and "free" in line for line in lines)
    assert any("a batch of 2 takes" in line and "about" in line for line in lines)


def test_a_disk_without_room_is_an_error_before_anything_is_written(
    data: Path, recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(data)._replace(free=1000)
    monkeypatch.setattr(features.shutil, "disk_usage", lambda path: usage)  # type: ignore[attr-defined]
    before = bytes_of(data)
    with pytest.raises(InputError, match=r"need .* and .* has 1\.0 kB free: make room, or store half"):
        cache_features(recipe, data, FeatureSettings(spaces=("tokens",)))
    assert bytes_of(data) == before


def test_a_space_that_the_recipe_does_not_have_is_refused(
    data: Path, written: Path, said: Callable[..., Any]
) -> None:
    result = said("features", data, "--recipe", written, "--space", "smell")
    assert result.code == 2 and "--space smell: the recipe tiny has pixels-8, tokens" in result.line
    for flags, message in (
        (("--batch", 0), "--batch 0"),
        (("--devices", "tpu"), "--devices tpu"),
        (("--workers", -1), "--workers -1"),
        (("--cluster", "auto"), "--cluster auto: say with --workers"),
    ):
        result = said("features", data, "--recipe", written, *flags)
        assert result.code == 2 and message in result.line


def test_a_picture_that_cannot_be_read_is_named(data: Path, written: Path, said: Callable[..., Any]) -> None:
    dataset = Dataset.open(data)
    key = str(dataset.shard_samples(0).keys[2])
    tar = data / dataset.manifest.shards[0].columns["stimuli"].file
    content = bytearray(tar.read_bytes())
    at = int(dataset.index(0, "stimuli").offset[2].max()) + 40
    content[at] ^= 0xFF
    tar.write_bytes(content)
    result = said("features", data, "--recipe", written, "--space", "tokens")
    assert result.code == 1
    assert tar.name in result.line and key in result.line
