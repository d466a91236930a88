"""Any arrays become a data set through a YAML file: npz, npy, HDF5 and MATLAB, whatever they count from."""

from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io
import yaml

from fmri2img.datasets import ArraysSource, ArraysSpec, build_dataset, verify
from fmri2img.datasets.array_files import open_array
from fmri2img.errors import InputError

HERE = Path(__file__).resolve()
EXAMPLE = HERE.parents[2] / "docs" / "examples" / "miyawaki2008.yaml"


def real_data() -> Path | None:
    """The folder with the real arrays, beside the repository or where FMRI2IMG_SHARED says."""
    folders = [Path(os.environ["FMRI2IMG_SHARED"])] if "FMRI2IMG_SHARED" in os.environ else []
    folders += [parent / "shared" for parent in HERE.parents]
    found = [folder / "data" / "miyawaki2008" for folder in folders]
    return next((folder for folder in found if folder.is_dir()), None)


needs_real_data = pytest.mark.skipif(
    real_data() is None, reason="../shared/data/miyawaki2008 is not here; FMRI2IMG_SHARED may name its folder"
)


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {
        "betas": generator.normal(3, 2, (20, 6)).astype(np.float32),
        "seen": np.arange(20) % 5,
        "session": np.repeat([1, 2], 10),
        "pictures": generator.integers(0, 256, (5, 4, 7), dtype=np.uint8),
        "rank": np.arange(20)[::-1].copy(),
    }


@pytest.fixture
def plain(tmp_path: Path, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """A description of `arrays` in an npz file, as plain data."""
    np.savez_compressed(tmp_path / "all.npz", **arrays)  # type: ignore[arg-type]
    return {
        "name": "mine",
        "terms": "mine",
        "pictures": {"array": "all.npz:pictures"},
        "subjects": {
            "a": {"responses": "all.npz:betas", "pictures": "all.npz:seen", "sessions": "all.npz:session"}
        },
        "split": {"test_pictures": [4]},
    }


def source_of(folder: Path, plain: dict[str, Any], **overrides: Any) -> ArraysSource:
    (folder / "spec.yaml").write_text(yaml.safe_dump(plain))
    return ArraysSource(ArraysSpec.load(folder / "spec.yaml", overrides=overrides))


def test_arrays_come_back_as_trials(
    tmp_path: Path, plain: dict[str, Any], arrays: dict[str, np.ndarray]
) -> None:
    source = source_of(tmp_path, plain)
    dataset = build_dataset(source, tmp_path / "set", normalise="none")
    assert verify(dataset.path) == []
    for split in ("train", "test"):
        samples = dataset.samples("a", split)
        for i, n in enumerate(samples.nsd_id.tolist()):
            np.testing.assert_allclose(
                dataset.responses(samples, i), arrays["betas"][arrays["seen"] == n], rtol=1e-3
            )
            assert (dataset.picture(samples, i) == arrays["pictures"][n][..., None]).all()
    assert dataset.samples("a", "test").nsd_id.tolist() == [4]


def test_every_kind_of_file_gives_the_same_trials(
    tmp_path: Path, plain: dict[str, Any], arrays: dict[str, np.ndarray]
) -> None:
    np.save(tmp_path / "betas.npy", arrays["betas"])
    scipy.io.savemat(tmp_path / "old.mat", {"betas": arrays["betas"], "seen": arrays["seen"] + 1.0})
    with h5py.File(tmp_path / "all.h5", "w") as file:
        file["group/betas"], file["seen"] = arrays["betas"], arrays["seen"]
    with h5py.File(tmp_path / "new.mat", "w") as file:
        file["betas"], file["seen"] = arrays["betas"].T, arrays["seen"][None] + 1.0
    reference = source_of(tmp_path, plain).subjects["a"]
    kinds: list[tuple[str, str, int]] = [
        ("betas.npy", "all.h5:seen", 0),
        ("all.h5:group/betas", "all.npz:seen", 0),
        ("old.mat:betas", "old.mat:seen", 1),
        ("new.mat:betas", "new.mat:seen", 1),
    ]
    for responses, seen, first in kinds:
        plain["subjects"]["a"] |= {"responses": responses, "pictures": seen}
        subject = source_of(tmp_path, plain | {"first_picture": first}).subjects["a"]
        assert subject.voxels == 6
        for session in (1, 2):
            one, two = reference.session(session), subject.session(session)
            assert (one.responses == two.responses).all()
            assert (one.nsd_ids == two.nsd_ids).all()


def test_trials_are_ordered_in_time_and_left_out_of_training_only(
    tmp_path: Path, plain: dict[str, Any], arrays: dict[str, np.ndarray]
) -> None:
    plain["subjects"]["a"]["order"] = "all.npz:rank"
    overrides = {
        "split.exclude_pictures": {"a": [1, 4]},
        "split.test_sessions": {"a": [2]},
        "split.test_pictures": [],
    }
    subject = source_of(tmp_path, plain, **overrides).subjects["a"]
    assert subject.session(1).nsd_ids.tolist() == [
        n for n in arrays["seen"][:10][::-1].tolist() if n not in (1, 4)
    ]
    assert subject.session(2).nsd_ids.tolist() == arrays["seen"][10:][::-1].tolist()


def test_pictures_are_scaled_and_captioned(tmp_path: Path, plain: dict[str, Any]) -> None:
    colours = np.random.default_rng(1).random((5, 4, 7, 3)) * 2 - 1
    np.save(tmp_path / "colours.npy", colours)
    (tmp_path / "captions.json").write_text(json.dumps([["a", "b"], "c", [], ["d"], ["e"]]))
    (tmp_path / "captions.txt").write_text("one\ntwo\nthree\nfour\nfive\n")
    plain["pictures"] = {"array": "colours.npy", "scale": [-1, 1], "captions": "captions.json"}
    source = source_of(tmp_path, plain)
    assert (source.picture(2) == np.round((colours[2] + 1) * 127.5).astype(np.uint8)).all()
    assert [source.captions(n) for n in range(3)] == [["a", "b"], ["c"], []]
    assert source_of(tmp_path, plain, **{"pictures.captions": "captions.txt"}).captions(4) == ["five"]
    with pytest.raises(InputError, match=r"beyond pictures\.scale"):
        source_of(tmp_path, plain, **{"pictures.scale": [0, 1]}).picture(0)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"split.test_session": [1]}, "split: unknown key 'test_session'; the keys here are test_pictures"),
        ({"subjects.a.betas": "x"}, "subjects.a: unknown key 'betas'; the keys here are responses, pictures"),
        ({"subjects.a.runs": "x:y"}, "give sessions or runs, not both"),
        (
            {"split.test_sessions": [9]},
            r"split\.test_sessions: \[9\] do not occur for a: choose from \[1, 2\]",
        ),
        ({"split.test_pictures": {"b": [1]}}, r"split names subject 'b': use one of \['a'\]"),
        (
            {"subjects.a.responses": "all.npz:nothing"},
            "no array 'nothing' in the file: use FILE:KEY with one of betas",
        ),
        ({"subjects.a.responses": "nowhere.npz:x"}, "there is no file .*nowhere.npz"),
        ({"subjects.a.responses": "all.npz:seen"}, r"give numbers \(trials, voxels\)"),
        ({"subjects.a.pictures": "all.npz:pictures"}, "must be one whole number a trial"),
        ({"first_picture": 1}, r"check first_picture \(1\)"),
        ({"pictures.array": "all.npz:betas"}, r"give \(n, height, width\)"),
        ({"normalise": "whiten"}, "normalise: Input should be 'session', 'pooled' or 'none'"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_way_out(
    tmp_path: Path, plain: dict[str, Any], overrides: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        source_of(tmp_path, plain, **overrides)


def test_overrides_are_written_as_on_the_command_line(tmp_path: Path, plain: dict[str, Any]) -> None:
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(plain))
    spec = ArraysSpec.load(
        tmp_path / "spec.yaml", overrides=["split.test_sessions=[2]", "split.test_pictures={a: [0]}"]
    )
    assert spec.split.test_sessions == [2]
    assert spec.split.test_pictures == {"a": [0]}
    with pytest.raises(InputError, match="'split' is no override: write KEY=VALUE"):
        ArraysSpec.load(tmp_path / "spec.yaml", overrides=["split"])
    with pytest.raises(InputError, match="cannot be read"):
        ArraysSpec.load(tmp_path / "nowhere.yaml")


def test_black_pictures_by_a_forgotten_scale_are_refused(tmp_path: Path, plain: dict[str, Any]) -> None:
    np.save(tmp_path / "binary.npy", np.ones((5, 4, 4), np.uint8))
    with pytest.raises(InputError, match=r"would be black: say pictures\.scale: \[0, 1\]"):
        source_of(tmp_path, plain, **{"pictures.array": "binary.npy"})


def test_pickled_objects_and_lying_headers_are_never_loaded(tmp_path: Path) -> None:
    np.savez(tmp_path / "objects.npz", x=np.array([{}], dtype=object))
    with pytest.raises(InputError, match="Python objects"):
        open_array(tmp_path, "objects.npz:x")
    buffer = io.BytesIO()
    header = {"descr": "<f8", "fortran_order": False, "shape": (10**9, 10**3)}
    np.lib.format.write_array_header_1_0(buffer, header)
    with zipfile.ZipFile(tmp_path / "huge.npz", "w") as archive:
        archive.writestr("x.npy", buffer.getvalue() + b"0" * 64)
    with pytest.raises(InputError, match=r"which its .* bytes cannot hold"):
        open_array(tmp_path, "huge.npz:x")
    (tmp_path / "huge.npy").write_bytes(buffer.getvalue())
    with pytest.raises(InputError, match="cannot be read"):
        open_array(tmp_path, "huge.npy")


@needs_real_data
def test_measured_fmri_builds_from_the_example(tmp_path: Path) -> None:
    spec = ArraysSpec.load(EXAMPLE, root=real_data())
    dataset = build_dataset(ArraysSource(spec), tmp_path / "set", normalise=spec.normalise)
    assert verify(dataset.path) == []
    assert {name: dataset.voxels(name) for name in dataset.subjects} == {"S1": 797, "S2": 899}
    trials = {
        s: [int(dataset.samples(s, p).repeats.sum()) for p in ("train", "test")] for s in dataset.subjects
    }
    assert trials == {"S1": [70, 10], "S2": [30, 10]}
    samples = dataset.samples("S2", "test")
    assert dataset.captions(samples, 0) == ["square"]
    assert np.unique(dataset.picture(samples, 0)).tolist() == [0, 255]
    assert dataset.voxel_table("S2")["xyz"].shape == (899, 3)


@needs_real_data
def test_pictures_can_be_left_out_of_one_person_of_the_example(tmp_path: Path) -> None:
    overrides = ["split.test_sessions={}", "split.test_pictures={S2: [1, 3]}"]
    spec = ArraysSpec.load(EXAMPLE, root=real_data(), overrides=overrides)
    dataset = build_dataset(ArraysSource(spec), tmp_path / "set", normalise=spec.normalise)
    assert dataset.samples("S2", "test").nsd_id.tolist() == [1, 3]
    assert dataset.samples("S2", "train").nsd_id.tolist() == [0, 2, 4]
    assert len(dataset.samples("S1", "train")) == 10


def test_a_date_that_does_not_exist_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text("name: 2026-13-45\n")
    with pytest.raises(InputError, match="cannot be read"):
        ArraysSpec.load(path)
