"""What a reconstruction leaves: tars that others read, provenance, seeds, and no half of anything on a full disk."""

import gc
import io
import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

from fmri2img.errors import DamageError
from fmri2img.files import alone
from fmri2img.generators.pixels import LoadedPixels
from fmri2img.launch.items import Item, plan_job
from fmri2img.launch.made import read_made
from fmri2img.trainer.seeds import derive_seed

Say = Callable[..., Any]


@pytest.fixture
def reconstruct(said: Say, world: Any) -> Say:
    """`reconstruct(out, *flags)`: four items a unit, in this process; fails where it must not."""

    def make(out: Path, *flags: object, code: int = 0) -> Any:
        words = ["reconstruct", "--from", world.finetuned, "--data", world.data, "--out", out]
        result = said(*words, "--workers", 0, "--batch", 4, *flags)
        assert result.code == code, result
        return result

    return make


@pytest.fixture
def noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every picture is noise from its own generator, enlarged features aside."""

    def generate(
        self: LoadedPixels, features: Mapping[str, torch.Tensor], generators: Sequence[torch.Generator]
    ) -> torch.Tensor:
        return torch.stack([torch.rand(3, 8, 8, generator=generator) for generator in generators])

    monkeypatch.setattr(LoadedPixels, "generate", generate)


def content(out: Path) -> dict[str, bytes]:
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name != "source.json"
    }


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_tars_hold_what_the_folder_holds_and_webdataset_reads_them(reconstruct: Say, tmp_path: Path) -> None:
    reconstruct(tmp_path / "folder")
    reconstruct(tmp_path / "tar", "--output", "tar")
    folder, tar = read_made(tmp_path / "folder"), read_made(tmp_path / "tar")
    assert np.array_equal(folder.pictures, tar.pictures)
    assert all(np.array_equal(folder.features[name], tar.features[name]) for name in folder.features)
    assert not list((tmp_path / "tar").rglob("*.png"))
    urls = str(tmp_path / "tar" / "units" / "unit-{00000..00002}" / "pictures.tar")
    samples = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))
    gc.collect()  # it leaves its files to the collector, which warns
    assert [sample["__key__"] for sample in samples] == [item["key"] for item in folder.items]
    for sample, item, picture in zip(samples, tar.items, folder.pictures, strict=True):
        told = {key: item[key] for key in ("subject", "nsd_id", "repeats", "sample")}
        assert json.loads(sample["json"]) == told
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(sample["png"]))), picture)


def test_a_reconstruction_in_tars_is_judged_and_verified_like_any_other(
    reconstruct: Say, said: Say, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    reconstruct(out, "--output", "tar")
    made = content(out)
    assert said("evaluate", out).code == 0 and said("report", out).code == 0
    tar = out / "units" / "unit-00001" / "pictures.tar"
    data = bytearray(tar.read_bytes())
    data[len(data) // 2] ^= 1
    tar.write_bytes(data)
    with pytest.raises(DamageError, match=r"unit-00001/pictures\.tar is missing or changed.*--verify"):
        read_made(out)
    assert (
        "unit-00001 is made again: pictures.tar is missing or changed"
        in reconstruct(out, "--output", "tar", "--verify").out
    )
    assert {name: content(out)[name] for name in made} == made


def test_what_is_there_is_told_and_verified_on_request(reconstruct: Say, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "units are" not in reconstruct(out).out
    assert "3 of 3 units are done" in reconstruct(out).out
    assert "3 of 3 units are whole, every byte read" in reconstruct(out, "--verify").out
    (out / "units" / "unit-00002" / "letter.txt").write_text("dear")
    told = reconstruct(out).out
    assert "unit-00002 is made again: it holds letter.txt, which it does not make" in told
    assert "2 of 3 units are done" in told
    assert "--no-resume begins anew" in reconstruct(out, "--no-resume", code=2).line


@pytest.mark.parametrize("threads", [0, 3])
@pytest.mark.usefixtures("noise")
def test_bytes_do_not_depend_on_what_overlaps(reconstruct: Say, tmp_path: Path, threads: int) -> None:
    flags = ("--repeats", "single", "--samples", 2)
    reconstruct(tmp_path / "one", *flags)
    reconstruct(tmp_path / "other", *flags, "--threads", threads)
    assert content(tmp_path / "one") == content(tmp_path / "other")


@pytest.mark.usefixtures("noise")
def test_noise_is_that_of_the_picture_and_of_nothing_else(reconstruct: Say, tmp_path: Path) -> None:
    """Seeds are of (run seed, subject, nsd_id, sample[, repeat]): neither batch, nor how many samples, nor order."""
    reconstruct(tmp_path / "four", "--samples", 2)
    reconstruct(tmp_path / "seven", "--batch", 7, "--samples", 3)
    reconstruct(tmp_path / "seed", "--seed", 1)
    four, seven, seed = (read_made(tmp_path / name) for name in ("four", "seven", "seed"))

    def drawn(made: Any) -> dict[tuple[int, int], bytes]:
        named = [(item["nsd_id"], item["sample"]) for item in made.items]
        return {name: picture.tobytes() for name, picture in zip(named, made.pictures, strict=True)}

    assert len(set(drawn(seven).values())) == 30
    assert drawn(four).items() <= drawn(seven).items()
    assert not set(drawn(seed).values()) & set(drawn(seven).values())
    first = four.items[0]
    named = derive_seed(0, "picture", "subj01", first["nsd_id"], first["sample"])
    wanted = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(named))
    assert first["seed"] == named
    assert np.array_equal(four.pictures[0], (wanted * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())


def test_a_single_repeat_has_a_seed_of_its_own_and_the_partition_none(world: Any) -> None:
    single = plan_job(world.finetuned, world.data, subjects=["subj01"], split="test", repeats="single")
    average = single.model_copy(update={"repeats": "average"})
    items = [Item(f"{key}_r{r}_s0", "subj01", 0, 7, (r,), 0) for key in ("a", "a_test") for r in (0, 1)]
    assert len({item.seed(single, "picture") for item in items}) == 2
    assert len({item.seed(average, "picture") for item in items}) == 1


def test_the_manifest_says_what_decided_the_bytes(
    reconstruct: Say, world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LoadedPixels, "provenance", lambda self: {"unet/model.safetensors": "ab" * 32})
    out = tmp_path / "out"
    reconstruct(out, "--dtype", "bfloat16", "--seed", 3)
    told = json.loads((out / "manifest.json").read_text())
    job, (made_with,) = told["job"], told["made_with"]
    assert (job["dtype"], job["device"], job["seed"], job["batch"]) == ("bfloat16", "cpu", 3, 4)
    assert job["generator"]["kind"] == "pixels" and len(job["checkpoint"]) == len(job["fingerprint"]) == 64
    assert made_with["units"] == 3 and made_with["weights"] == {"unet/model.safetensors": "ab" * 32}
    assert made_with["versions"]["torch"] == torch.__version__ and made_with["processor"].startswith("cpu ")
    reconstruct(out, "--dtype", "float32", "--seed", 3, code=2)


def test_units_of_other_weights_are_not_mixed(
    reconstruct: Say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    reconstruct(out)
    (out / "units" / "unit-00001" / "unit.json").unlink()
    monkeypatch.setattr(LoadedPixels, "provenance", lambda self: {"unet/model.safetensors": "ab" * 32})
    assert "made with other weights of the generator" in reconstruct(out, code=2).line


def test_two_drivers_do_not_work_on_one_folder(reconstruct: Say, tmp_path: Path) -> None:
    out = tmp_path / "out"
    reconstruct(out)
    with alone(out, "never seen"):
        assert "another process reconstructs into" in reconstruct(out, code=2).line
    reconstruct(out)


@pytest.mark.parametrize(("number", "name"), [(28, "No space left on device"), (30, "Read-only file system")])
@pytest.mark.parametrize("threads", [0, 1])
def test_a_disk_that_takes_no_more_stops_the_job_with_nothing_half_written(
    reconstruct: Say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, name: str, threads: int
) -> None:
    out, real, count, lock = tmp_path / "out", os.fsync, [0], threading.Lock()
    reconstruct(tmp_path / "whole")

    def full(handle: int) -> None:
        with lock:
            count[0] += 1
            if count[0] > 14:  # within the second unit
                raise OSError(number, os.strerror(number), "/full")
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        result = reconstruct(out, "--threads", threads, code=75)
    assert name in result.line and "it goes on from the units that are done" in result.line
    assert [path.name for path in (out / "units").iterdir()] == ["unit-00000"]
    assert not (out / "manifest.json").exists()
    reconstruct(out)
    assert content(out) == content(tmp_path / "whole")


def test_responses_are_read_and_pictures_written_while_others_are_computed(
    reconstruct: Say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the second unit is computed, the third has been read and the first is written."""
    from fmri2img.launch import reconstructor

    events: list[str] = []
    read, written = threading.Event(), threading.Event()
    inner = {name: getattr(reconstructor.Reconstructor, name) for name in ("read", "compute", "write")}

    def reads(self: Any, unit: Any) -> Any:
        found = inner["read"](self, unit)
        if unit.number == 2:
            read.set()
        return found

    def computes(self: Any, unit: Any, trials: Any) -> Any:
        if unit.number == 1:
            events.append(f"read {read.wait(20)}, written {written.wait(20)}")
        return inner["compute"](self, unit, trials)

    def writes(self: Any, unit: Any, *arguments: Any) -> None:
        inner["write"](self, unit, *arguments)
        if unit.number == 0:
            written.set()

    for name, outer in (("read", reads), ("compute", computes), ("write", writes)):
        monkeypatch.setattr(reconstructor.Reconstructor, name, outer)
    reconstruct(tmp_path / "out")
    assert events == ["read True, written True"]
