"""Features that somebody already computed get to the pictures they are of, whatever file they are in."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from safetensors.numpy import save_file

from fmri2img.cli import run
from fmri2img.datasets import Dataset, verify
from fmri2img.datasets.bfloat16 import from_bits, to_bits
from fmri2img.datasets.feature_import import FeatureRows, import_features, read_ids
from fmri2img.datasets.row_files import open_rows
from fmri2img.errors import InputError

FEATURES = np.random.default_rng(3).normal(size=(12, 2, 3)).astype(np.float32)


def write_npy(folder: Path, values: np.ndarray) -> str:
    np.save(folder / "f.npy", values)
    return str(folder / "f.npy")


def write_hdf5(folder: Path, values: np.ndarray) -> str:
    with h5py.File(folder / "c_all.hdf5", "w") as file:
        file["data"] = values
    return f"{folder / 'c_all.hdf5'}:data"


def write_npz(folder: Path, values: np.ndarray) -> str:
    np.savez(folder / "f.npz", other=np.zeros(3), data=values)
    return f"{folder / 'f.npz'}:data"


def write_packed_npz(folder: Path, values: np.ndarray) -> str:
    np.savez_compressed(folder / "p.npz", data=values)
    return f"{folder / 'p.npz'}:data"


def write_safetensors(folder: Path, values: np.ndarray) -> str:
    save_file({"other": np.zeros(5, np.float64), "data": values}, folder / "f.safetensors")
    return f"{folder / 'f.safetensors'}:data"


KINDS = [write_npy, write_hdf5, write_npz, write_packed_npz, write_safetensors]


def every_feature(dataset: Dataset, space: str) -> dict[int, np.ndarray]:
    found: dict[int, np.ndarray] = {}
    for subject in dataset.subjects:
        for split in ("train", "test"):
            samples = dataset.samples(subject, split)
            rows = dataset.read_features(samples, range(len(samples)), space)
            found |= dict(zip(samples.nsd_id.tolist(), rows, strict=True))
    return found


@pytest.mark.parametrize("write", KINDS)
def test_a_row_is_the_picture_of_its_number(
    tiny: Dataset, tmp_path: Path, write: Callable[[Path, np.ndarray], str]
) -> None:
    reference = write(tmp_path, FEATURES)
    dataset = import_features(tiny.path, name="given", sources=[FeatureRows(reference)])
    assert verify(tiny.path) == []
    found = every_feature(dataset, "given")
    assert sorted(found) == list(range(10))
    assert all((found[n] == FEATURES[n]).all() for n in found)
    entry = dataset.feature_spaces["given"]
    (source,) = entry.extractor["files"]
    assert (source["file"], source["shape"]) == (Path(reference.split(":")[0]).name, [12, 2, 3])
    assert (entry.dtype, entry.shape) == ("float32", [2, 3])


@pytest.mark.parametrize("write", KINDS)
@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_types_are_read_as_they_are(
    tmp_path: Path, write: Callable[[Path, np.ndarray], str], dtype: Any
) -> None:
    values = (FEATURES * 100).astype(dtype)
    file = open_rows(write(tmp_path, values))
    rows = np.array([7, 0, 7, 11])
    np.testing.assert_array_equal(file.rows(rows), values[rows].astype(np.float32))


def test_bfloat16_comes_and_stays_bit_by_bit(tiny: Dataset, tmp_path: Path) -> None:
    bits = to_bits(FEATURES)
    header = {"data": {"dtype": "BF16", "shape": list(bits.shape), "data_offsets": [0, bits.nbytes]}}
    text = json.dumps(header).encode()
    (tmp_path / "b.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bits.tobytes())
    dataset = import_features(
        tiny.path, name="given", sources=[FeatureRows(f"{tmp_path / 'b.safetensors'}:data")]
    )
    assert dataset.feature_spaces["given"].dtype == "bfloat16"
    found = every_feature(dataset, "given")
    assert all((found[n] == from_bits(bits)[n]).all() for n in found)
    assert verify(tiny.path) == []


def test_rows_in_any_order_go_by_their_ids(tiny: Dataset, tmp_path: Path) -> None:
    order = np.random.default_rng(0).permutation(12)
    np.save(tmp_path / "ids.npy", order)
    reference = write_hdf5(tmp_path, FEATURES[order])
    source = FeatureRows(reference, read_ids(str(tmp_path / "ids.npy")), "ids.npy")
    found = every_feature(import_features(tiny.path, name="given", sources=[source]), "given")
    assert all((found[n] == FEATURES[n]).all() for n in found)


def test_training_and_test_arrays_together_hold_all(tiny: Dataset, tmp_path: Path) -> None:
    train, test = np.array([9, 3, 5, 4, 7, 6, 8]), np.array([2, 0, 1, 3])
    np.save(tmp_path / "train.npy", FEATURES[train])
    np.save(tmp_path / "test.npy", np.where(test[:, None, None] == 3, -1, FEATURES[test]))
    sources = [
        FeatureRows(str(tmp_path / "train.npy"), train),
        FeatureRows(str(tmp_path / "test.npy"), test),
    ]
    found = every_feature(import_features(tiny.path, name="given", sources=sources), "given")
    assert all((found[n] == FEATURES[n]).all() for n in found)  # of 3 too: the first file that has it


def test_statistics_are_over_training_pictures(tiny: Dataset, tmp_path: Path) -> None:
    dataset = import_features(
        tiny.path, name="given", sources=[FeatureRows(write_npy(tmp_path, FEATURES))], dtype="float16"
    )
    training = sorted({n for s in dataset.subjects for n in dataset.samples(s, "train").nsd_id.tolist()})
    stored = FEATURES[training].astype(np.float16).astype(np.float64)
    mean, std = dataset.feature_statistics("given")
    np.testing.assert_allclose(mean, stored.mean(0), rtol=1e-6)
    np.testing.assert_allclose(std, stored.std(0), rtol=1e-6)


def test_missing_pictures_are_named_before_anything_is_written(tiny: Dataset, tmp_path: Path) -> None:
    reference = write_npy(tmp_path, FEATURES[:7])
    with pytest.raises(
        InputError, match=r"3 of the 10 pictures .* have no feature in .*f\.npy: 7, 8, 9\. Give"
    ):
        import_features(tiny.path, name="given", sources=[FeatureRows(reference)])
    assert verify(tiny.path) == []


def test_a_feature_that_is_nan_is_refused_with_its_picture(tiny: Dataset, tmp_path: Path) -> None:
    values = FEATURES[::-1].copy()
    values[3, 1, 2] = np.nan  # of picture 8
    source = FeatureRows(write_npy(tmp_path, values), np.arange(12)[::-1])
    with pytest.raises(
        InputError, match=r"f\.npy, row 3: the feature of picture 8 holds values that are NaN"
    ):
        import_features(tiny.path, name="given", sources=[source])
    assert Dataset.open(tiny.path).feature_spaces == {}


def test_the_same_name_stands_for_the_same_bytes(tiny: Dataset, tmp_path: Path) -> None:
    source = FeatureRows(write_npy(tmp_path, FEATURES))
    import_features(tiny.path, name="given", sources=[source])
    import_features(tiny.path, name="given", sources=[source])  # nothing to do
    np.save(tmp_path / "f.npy", FEATURES + 1)
    with pytest.raises(InputError, match="already has a feature space given"):
        import_features(tiny.path, name="given", sources=[source])


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda f: f"{f / 'nowhere.npy'}", "there is no file"),
        (lambda f: f"{f / 'c_all.hdf5'}:date", "no array 'date' in the file: use FILE:KEY with one of data"),
        (lambda f: f"{f / 'f.safetensors'}:date", "no tensor 'date' .* one of data, other"),
        (
            lambda f: f"{f / 'f.npz'}:date",
            "no array 'date' in the file: use FILE:KEY with one of data, other",
        ),
        (lambda f: f"{f / 'f.npz'}:other", r"is \(3,\): give features \(pictures, \.\.\.\)"),
    ],
)
def test_what_is_not_there_is_told(tmp_path: Path, edit: Callable[[Path], str], said: str) -> None:
    for write in (write_hdf5, write_npz, write_safetensors):
        write(tmp_path, FEATURES)
    with pytest.raises(InputError, match=said):
        open_rows(edit(tmp_path))


def test_lying_sizes_are_never_believed(tmp_path: Path) -> None:
    for kind, shape, offsets in (
        ("F32", [12, 600], [0, 28800]),
        ("F32", [-1, -6], [0, 24]),
        ("I64", [3, 1], [0, 24]),
    ):
        text = json.dumps({"data": {"dtype": kind, "shape": shape, "data_offsets": offsets}}).encode()
        (tmp_path / "f.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"0" * 24)
        with pytest.raises(InputError, match="cannot be read"):
            open_rows(f"{tmp_path / 'f.safetensors'}:data")
    (tmp_path / "f.safetensors").write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    with pytest.raises(InputError, match="its header announces"):
        open_rows(f"{tmp_path / 'f.safetensors'}:data")


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        (np.arange(11), "has 12 rows, and there are 11 picture ids"),
        (np.zeros(12, int), "0 is there twice"),
        (np.arange(12) - 1, "-1 is negative"),
    ],
)
def test_ids_that_cannot_be_are_refused(tiny: Dataset, tmp_path: Path, ids: np.ndarray, said: str) -> None:
    with pytest.raises(InputError, match=said):
        import_features(tiny.path, name="given", sources=[FeatureRows(write_npy(tmp_path, FEATURES), ids)])


def test_the_command_imports(tiny: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    order = np.arange(12)[::-1]
    np.save(tmp_path / "ids.npy", order)
    line = ["features", "import", str(tiny.path), "--space", "c", "--dtype", "float16"]
    line += ["--from", write_hdf5(tmp_path, FEATURES[order]), "--ids", str(tmp_path / "ids.npy")]
    assert run(line) == 0
    assert f"Feature space c in {tiny.path}" in " ".join(capsys.readouterr().out.split())
    found = every_feature(Dataset.open(tiny.path), "c")
    assert all((found[n] == FEATURES[n].astype(np.float16)).all() for n in found)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("import", "missing PATH, --from"),
        ("import x --space a", "missing --from; see fmri2img features import --help"),
        ("import x --space a --from b.npy --recipe mine", "features import takes no recipe: leave --recipe"),
        (
            "import x --space a --from b.npy --dtype int8",
            "--dtype int8: use one of bfloat16, float16, float32",
        ),
        ("import x --space a --from b.npy --ids c.npy d.npy", "--ids names 2 arrays and --from 1"),
        ("import x --space a --from b.npy --subjects subj01", "give that too"),
        (
            "import x --space a --from b.npy --design c.mat",
            r"--design with --subjects (none) needs a training",
        ),
        ("x --space a", "x is not a folder: give the data set folder"),
    ],
)
def test_a_wrong_import_is_told_in_one_line(capsys: pytest.CaptureFixture[str], line: str, said: str) -> None:
    assert run(["features", *line.split()]) == 2
    (message,) = capsys.readouterr().err.splitlines()
    assert said in message
