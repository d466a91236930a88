"""Reconstruction in units: the same bytes however it is run, made once, remade where damaged."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fmri2img.datasets import Dataset
from fmri2img.errors import DamageError, InputError
from fmri2img.launch.items import Unit, plan_job, units_of
from fmri2img.launch.made import merge, read_made
from fmri2img.launch.reconstructor import Reconstructor
from fmri2img.models.loading import load_decoder

Say = Callable[..., Any]


@pytest.fixture
def reconstruct(said: Say, world: Any) -> Say:
    """`reconstruct(out, *flags)`: four items a unit, so that ten items leave a tail of two; fails where it must not."""

    def make(out: Path, *flags: object, code: int = 0, data: Path = world.data) -> Any:
        words = ["reconstruct", "--from", world.finetuned, "--data", data, "--out", out, "--batch", 4]
        result = said(*words, *(flags or ("--workers", 0)))
        assert result.code == code, result
        return result

    return make


def content(out: Path) -> dict[str, bytes]:
    """Every file of a reconstruction but where it was made from."""
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name != "source.json"
    }


@pytest.mark.slow
@pytest.mark.usefixtures("two_workers")
def test_bytes_depend_neither_on_workers_nor_on_threads(
    reconstruct: Say, tmp_path: Path, threads: Callable[[int], None]
) -> None:
    threads(2)
    reconstruct(tmp_path / "alone")
    assert torch.get_num_threads() == 2
    threads(1)
    reconstruct(tmp_path / "again")
    for workers in (1, 2):
        reconstruct(tmp_path / f"{workers}", "--workers", workers)
    made = content(tmp_path / "alone")
    assert len([name for name in made if name.endswith(".png")]) == 10
    assert all(content(tmp_path / name) == made for name in ("again", "1", "2"))


def test_another_generator_takes_the_place_of_the_recipes(reconstruct: Say, tmp_path: Path) -> None:
    def sizes(out: Path) -> set[tuple[int, ...]]:
        return {np.asarray(Image.open(io.BytesIO(path.read_bytes()))).shape for path in out.rglob("*.png")}

    reconstruct(tmp_path / "small", "--workers", 0, "--set", "size=32")
    assert sizes(tmp_path / "small") == {(32, 32, 3)}
    other = tmp_path / "other.yaml"
    other.write_text("generator: {kind: pixels, space: pixels-16, size: 16}")
    reconstruct(tmp_path / "named", "--workers", 0, "--generator", other)
    assert sizes(tmp_path / "named") == {(16, 16, 3)}
    told = json.loads((tmp_path / "named" / "manifest.json").read_text())
    assert told["job"]["generator"]["size"] == 16
    other.write_text("{kind: pixels, space: pixels-8, size: 16}")
    refused = reconstruct(tmp_path / "never", "--workers", 0, "--generator", other, code=2)
    assert "pixels-8" in refused.line
    refused = reconstruct(tmp_path / "never", "--workers", 0, "--set", "sze=32", code=2)
    assert "generator.sze is not a key" in refused.line and not (tmp_path / "never").exists()
    again = reconstruct(tmp_path / "named", "--workers", 0, code=2)
    assert "generator" in again.line


def test_a_picture_does_not_depend_on_who_is_in_its_unit(
    reconstruct: Say, tmp_path: Path, world: Any
) -> None:
    """Ten items in units of sixteen, and one of them alone with fifteen rows of padding."""
    job = plan_job(world.finetuned, world.data, subjects=["subj01"], split="test", batch=16)
    (whole,) = units_of(job, Dataset.open(world.data))
    worker = Reconstructor(job, world.finetuned, world.data, tmp_path)
    together, pictures = worker.compute(whole, worker.read(whole))
    assert len(whole.items) == 10
    for i, item in enumerate(whole.items):
        unit = Unit(0, (item,))
        alone, (picture,) = worker.compute(unit, worker.read(unit))
        assert all(torch.equal(alone[name][0], together[name][i]) for name in alone)
        assert np.array_equal(picture, pictures[i])


def test_predictions_are_those_of_the_decoder_averaged_over_repeats(
    reconstruct: Say, tmp_path: Path, world: Any
) -> None:
    reconstruct(tmp_path / "out")
    made, dataset = read_made(tmp_path / "out"), Dataset.open(world.data)
    decoder = load_decoder(world.finetuned)
    table = dataset.samples("subj01", "test")
    for i, item in enumerate(made.items):
        row = next(r for r in range(len(table)) if int(table.nsd_id[r]) == item["nsd_id"])
        responses = torch.from_numpy(dataset.responses(table, row).astype(np.float32))
        wanted = decoder.predict({"subj01": responses}).features["pixels-16"].mean(0)
        np.testing.assert_allclose(made.features["pixels-16"][i], wanted.numpy(), rtol=1e-4, atol=1e-5)


def test_a_rerun_does_nothing(reconstruct: Say, tmp_path: Path) -> None:
    reconstruct(tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "units").rglob("*")}
    reconstruct(tmp_path / "out")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "units").rglob("*")} == before


@pytest.mark.parametrize(
    "damage", ["deleted unit", "deleted picture", "flipped byte", "cut sidecar", "stale staging"]
)
def test_only_a_damaged_unit_is_remade(reconstruct: Say, tmp_path: Path, damage: str) -> None:
    out = tmp_path / "out"
    reconstruct(out)
    made = content(out)
    unit = out / "units" / "unit-00001"
    picture = next(unit.glob("*.png"))
    if damage == "deleted unit":
        shutil.rmtree(unit)
    elif damage == "deleted picture":
        picture.unlink()
    elif damage == "flipped byte":
        predictions = bytearray((unit / "predictions.safetensors").read_bytes())
        predictions[-1] ^= 1
        (unit / "predictions.safetensors").write_bytes(predictions)
    elif damage == "cut sidecar":
        (unit / "unit.json").write_text('{"job"')
    else:
        unit.rename(unit.with_name(".unit-00001.tmp-12345678"))
    others = {p: p.stat().st_mtime_ns for p in (out / "units").glob("unit-0000[02]/*")}
    reconstruct(out, "--workers", 0, *(["--verify"] if damage == "flipped byte" else []))
    assert content(out) == made
    assert {p: p.stat().st_mtime_ns for p in others} == others


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_unit_that_cannot_be_made_is_told_and_the_others_are_done(
    request: pytest.FixtureRequest, reconstruct: Say, world: Any, data: Path, tmp_path: Path, workers: int
) -> None:
    if workers:
        request.getfixturevalue("two_workers")
    out, dataset = tmp_path / "out", Dataset.open(data)
    table = dataset.samples("subj01", "test")
    number = int(table.shard[5])
    file = data / dataset.manifest.shards[number].columns["responses"].file
    index = dataset.index(number, "responses")
    whole = file.read_bytes()
    row, field = table.row[5], list(index.fields).index("betas.npy")
    place = int(index.offset[row, field] + index.size[row, field]) - 1  # the last byte of the sixth sample
    file.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
    result = reconstruct(out, "--workers", workers, code=1, data=data)
    assert "1 of 3 units failed, the first is unit 1" in result.line and str(file) in result.line
    assert sorted(p.name for p in (out / "units").glob("unit-*")) == ["unit-00000", "unit-00002"]
    assert not (out / "manifest.json").exists()
    file.write_bytes(whole)
    reconstruct(out, "--workers", 0, data=data)
    assert len(read_made(out).items) == 10


def test_single_repeats_and_several_samples_have_their_own_items(reconstruct: Say, tmp_path: Path) -> None:
    reconstruct(tmp_path / "out", "--workers", 0, "--repeats", "single", "--samples", 2)
    made = read_made(tmp_path / "out")
    keys = [item["key"] for item in made.items]
    assert len(set(keys)) == len(keys) == 10 * 3 * 2
    assert {(tuple(item["repeats"]), item["sample"]) for item in made.items} == {
        ((repeat,), sample) for repeat in range(3) for sample in range(2)
    }
    reconstruct(tmp_path / "average")
    average = read_made(tmp_path / "average")
    first = [i for i, item in enumerate(made.items) if item["nsd_id"] == average.items[0]["nsd_id"]]
    singles = made.features["pixels-16"][[i for i in first if made.items[i]["sample"] == 0]]
    np.testing.assert_allclose(singles.mean(0), average.features["pixels-16"][0], rtol=1e-4, atol=1e-5)


def test_a_merge_refuses_units_of_nobody_and_units_missing(
    reconstruct: Say, tmp_path: Path, world: Any
) -> None:
    out = tmp_path / "out"
    reconstruct(out)
    job = plan_job(world.finetuned, world.data, subjects=["subj01"], split="test", batch=4)
    dataset = Dataset.open(world.data)
    shutil.copytree(out / "units" / "unit-00000", out / "units" / "unit-00007")
    with pytest.raises(DamageError, match="unit-00007, which the job does not make"):
        merge(out, job, dataset)
    shutil.rmtree(out / "units" / "unit-00007")
    shutil.rmtree(out / "units" / "unit-00002")
    with pytest.raises(DamageError, match="unit-00002: it is not there"):
        merge(out, job, dataset)


def test_a_unit_of_another_job_is_not_taken_for_ones_own(reconstruct: Say, tmp_path: Path) -> None:
    reconstruct(tmp_path / "one")
    reconstruct(tmp_path / "two", "--workers", 0, "--seed", 1)
    wanted = content(tmp_path / "two")
    shutil.rmtree(tmp_path / "two" / "units" / "unit-00000")
    shutil.copytree(tmp_path / "one" / "units" / "unit-00000", tmp_path / "two" / "units" / "unit-00000")
    reconstruct(tmp_path / "two", "--workers", 0, "--seed", 1)
    assert content(tmp_path / "two") == wanted


@pytest.mark.parametrize("change", [("--seed", 1), ("--batch", 8), ("--split", "train"), ("--samples", 2)])
def test_another_job_is_refused_in_the_same_folder(
    reconstruct: Say, tmp_path: Path, change: tuple[str, Any]
) -> None:
    reconstruct(tmp_path / "out")
    result = reconstruct(tmp_path / "out", "--workers", 0, *change, code=2)
    told = f"holds another reconstruction ({change[0].removeprefix('--')} was"
    assert told in result.line


def test_a_damaged_identity_is_told(reconstruct: Say, tmp_path: Path) -> None:
    reconstruct(tmp_path / "out")
    (tmp_path / "out" / "job.json").write_text("{")
    assert "job.json is damaged" in reconstruct(tmp_path / "out", code=1).line


@pytest.mark.parametrize("name", ["*.png", "predictions.safetensors"])
def test_what_changed_after_the_merge_is_not_judged(reconstruct: Say, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    reconstruct(out)
    file = next((out / "units" / "unit-00001").glob(name))
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(DamageError, match="is missing or changed"):
        read_made(out)


def test_reading_asks_for_a_finished_whole_reconstruction(reconstruct: Say, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no finished reconstruction"):
        read_made(tmp_path)
    reconstruct(tmp_path / "out")
    manifest = tmp_path / "out" / "manifest.json"
    told = json.loads(manifest.read_text())
    for wrong in ("{", "[]", json.dumps({**told, "job": {}}), json.dumps({**told, "items": [{}]})):
        manifest.write_text(wrong)
        with pytest.raises(DamageError, match=r"manifest\.json is damaged"):
            read_made(tmp_path / "out")


def test_pictures_are_what_the_manifest_says(reconstruct: Say, tmp_path: Path) -> None:
    reconstruct(tmp_path / "out")
    told = json.loads((tmp_path / "out" / "manifest.json").read_text())
    for item in told["items"]:
        assert item["subject"] == "subj01" and item["key"].endswith("_s0")
        with Image.open(tmp_path / "out" / item["file"]) as picture:
            assert picture.size == (64, 64)
