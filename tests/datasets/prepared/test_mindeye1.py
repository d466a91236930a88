"""MindEye1's published tars become a data set with the same repeats, pictures and splits."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset

from fmri2img.cli import run
from fmri2img.datasets import Dataset, build_dataset, verify
from fmri2img.datasets.prepared.mindeye1 import MindEye1Source
from fmri2img.errors import DamageError, InputError


def test_the_source_gives_every_distinct_repeat_once(mindeye1: Any) -> None:
    mindeye1.check_source(MindEye1Source(mindeye1.root, ["subj01"]))
    mindeye1.check_source(MindEye1Source(mindeye1.root / "webdataset_avg_split", ["subj01"]))


def test_the_data_set_has_every_repeat_and_the_pictures_as_they_are(mindeye1: Any, tmp_path: Path) -> None:
    source = MindEye1Source(mindeye1.root, ["subj01"])
    assert all(source.picture(n) == data for n, data in mindeye1.pictures.items())
    dataset = build_dataset(source, tmp_path / "set", normalise="none")
    assert verify(dataset.path) == []
    mindeye1.check(dataset)
    samples = dataset.samples("subj01", "test")
    assert dataset.captions(samples, 1) == ["1 of 60", "another"]


def test_training_and_validation_are_named_splits_of_the_training_partition(
    mindeye1: Any, tmp_path: Path
) -> None:
    dataset = build_dataset(MindEye1Source(mindeye1.root, ["subj01"]), tmp_path / "set", normalise="none")
    assert dataset.samples("subj01", "mindeye1-val").nsd_id.tolist() == [6, 11]
    assert dataset.samples("subj01", "mindeye1-train").nsd_id.tolist() == [3, 4, 5, 7, 8, 9, 20]
    assert len(dataset.samples("subj01", "train")) == 9


def test_the_set_of_all_sessions_has_no_validation(mindeye1: Any) -> None:
    (mindeye1.root / "webdataset_avg_split").rename(mindeye1.root / "webdataset_avg_new")
    folder = mindeye1.root / "webdataset_avg_new"
    (folder / "val" / "val_subj01_0.tar").unlink()
    (folder / "metadata_subj01.json").unlink()
    source = MindEye1Source(folder, ["subj01"])
    assert list(source.splits) == ["mindeye1-train"]
    assert source.provenance["release"].endswith("webdataset_avg_new")


def test_a_tar_that_is_missing_is_named(mindeye1: Any) -> None:
    folder = mindeye1.root / "webdataset_avg_split"
    (folder / "train" / "train_subj01_1.tar").unlink()
    with pytest.raises(InputError, match=r"hold 4 samples, and metadata_subj01\.json says 7: fetch the tars"):
        MindEye1Source(mindeye1.root, ["subj01"])
    (folder / "train" / "train_subj01_0.tar").rename(folder / "train" / "train_subj01_1.tar")
    with pytest.raises(InputError, match=r"lacks train_subj01_0\.tar"):
        MindEye1Source(mindeye1.root, ["subj01"])
    with pytest.raises(InputError, match=r"lacks train_subj02_0\.tar"):
        MindEye1Source(mindeye1.root, ["subj02"])


ROWS = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float16)


def saved(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"coco73k.npy": saved(np.array([3]))},
            r"sample x has picture 3, as has sample\d+ of train_subj01_0\.tar",
        ),
        ({"coco73k.npy": saved(np.array([-3]))}, "sample x has picture -3"),
        ({"coco73k.npy": saved(np.array([1, 2]))}, r"coco73k\.npy is \(2,\) and must be one whole number"),
        ({"coco73k.npy": None}, r"sample x has no coco73k\.npy"),
        ({"nsdgeneral.npy": saved(ROWS[:, :5])}, r"is float16 \(3, 5\) and must be \(repeats, 6\)"),
        ({"nsdgeneral.npy": None}, r"sample x has no nsdgeneral\.npy"),
        ({"num_uniques.npy": saved(np.array(2))}, r"3 distinct repeats and num_uniques\.npy says 2"),
        ({"nsdgeneral.npy": saved(np.array([{}]))}, "Python objects"),
        ({"jpg": None}, "sample x has no jpg or png"),
    ],
)
def test_samples_that_do_not_fit_are_named(mindeye1: Any, change: dict[str, Any], said: str) -> None:
    path = mindeye1.root / "webdataset_avg_split" / "val" / "val_subj01_0.tar"
    whole = {
        "jpg": mindeye1.pictures[6],
        "nsdgeneral.npy": saved(ROWS),
        "num_uniques.npy": saved(np.array(3)),
    }
    members = {
        n: v for n, v in (whole | {"coco73k.npy": saved(np.array(33))} | change).items() if v is not None
    }
    with webdataset.TarWriter(str(path), encoder=False) as tar:
        tar.write({"__key__": "y", **whole, "coco73k.npy": saved(np.array(6))})
        tar.write({"__key__": "x", **members})

    def read() -> None:
        source = MindEye1Source(mindeye1.root, ["subj01"])
        source.subjects["subj01"].session(3)
        source.picture(33)

    with pytest.raises(DamageError, match=said) as told:
        read()
    assert str(path) in str(told.value)


def test_the_command_builds_it(mindeye1: Any, tmp_path: Path) -> None:
    line = ["data", "build", "mindeye1", str(tmp_path / "set"), "--root", str(mindeye1.root)]
    assert run([*line, "--subjects", "subj01"]) == 0
    mindeye1.check(Dataset.open(tmp_path / "set"))
