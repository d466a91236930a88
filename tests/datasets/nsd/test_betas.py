"""Betas are those of the chosen voxels in per cent, whatever the form of the file, or the damage is named."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
import pytest

from fmri2img.datasets.nsd import betas as module
from fmri2img.datasets.nsd.betas import read_betas
from fmri2img.errors import DamageError, InputError


@pytest.fixture
def positions(release: Any) -> np.ndarray:
    return np.flatnonzero(release.mask)


def read(path: Path, release: Any, positions: np.ndarray) -> np.ndarray:
    return read_betas(path, release.shape, positions, trials=750)


def volumes(release: Any) -> np.ndarray:
    """Session 1 of subj01 as float32 `(trials, x, y, z)`, per cent."""
    found = np.zeros((750, *release.shape), np.float32)
    found[:, release.mask] = release.betas("subj01", 1) / np.float32(300)
    return found


def test_both_forms_hold_the_same_betas(copied: Any, positions: np.ndarray) -> None:
    expected = copied.betas("subj01", 1) / np.float32(300)
    for form in ("hdf5", "nii.gz"):
        path = copied.write_session("subj01", 1, form=form)
        np.testing.assert_array_equal(read(path, copied, positions), expected)


def test_any_voxels_are_found_in_any_chunks(
    copied: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SLAB", 20_000)
    stored = np.round(np.random.default_rng(1).normal(0, 900, (750, *copied.shape))).astype(np.int16)
    chosen = np.sort(np.random.default_rng(2).choice(stored[0].size, 50, replace=False))
    for chunks in (None, (750, 1, 1, 1), (750, 2, 3, 2), (10, *copied.shape[::-1]), (1, *copied.shape[::-1])):
        path = tmp_path / "betas.hdf5"
        with h5py.File(path, "w") as file:
            file.create_dataset("betas", data=stored.transpose(0, 3, 2, 1), chunks=chunks)
        expected = stored.reshape(750, -1)[:, chosen] / np.float32(300)
        np.testing.assert_array_equal(read(path, copied, chosen), expected)


def test_numbers_with_a_decimal_point_are_per_cent_already(
    copied: Any, positions: np.ndarray, tmp_path: Path
) -> None:
    image = nibabel.Nifti1Image(np.moveaxis(volumes(copied), 0, 3), np.eye(4))
    nibabel.save(image, tmp_path / "betas.nii.gz")
    expected = copied.betas("subj01", 1) / np.float32(300)
    np.testing.assert_array_equal(read(tmp_path / "betas.nii.gz", copied, positions), expected)


def test_a_voxel_without_data_reads_as_0_and_a_hole_is_damage(
    copied: Any, positions: np.ndarray, tmp_path: Path
) -> None:
    values = np.moveaxis(volumes(copied), 0, 3)
    x, y, z = np.argwhere(copied.mask)[3]
    values[x, y, z] = np.nan
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "betas.nii.gz")
    found = read(tmp_path / "betas.nii.gz", copied, positions)
    assert (found[:, 3] == 0).all() and np.isfinite(found).all()
    x, y, z = (int(n) for n in np.argwhere(copied.mask)[7])
    values[x, y, z, 12] = np.nan
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "betas.nii.gz")
    with pytest.raises(DamageError, match=rf"trial 13: the beta of voxel \({x}, {y}, {z}\) is not a number"):
        read(tmp_path / "betas.nii.gz", copied, positions)


@pytest.mark.parametrize("form", ["hdf5", "nii.gz"])
def test_another_number_of_trials_or_another_volume_is_refused(
    copied: Any, positions: np.ndarray, form: str
) -> None:
    path = copied.write_session("subj01", 1, form=form, trials=700)
    with pytest.raises(DamageError, match="holds 700 trials, and the session has 750 by the design"):
        read(path, copied, positions)
    with pytest.raises(InputError, match=r"holds volumes of \(6, 7, 5\), and the ROI volumes .* \(7, 6, 5\)"):
        read_betas(path, (7, 6, 5), positions, trials=700)


@pytest.mark.parametrize("form", ["hdf5", "nii.gz"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.95])
def test_a_truncated_file_is_named(copied: Any, positions: np.ndarray, form: str, share: float) -> None:
    path = copied.write_session("subj01", 1, form=form)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(DamageError, match=rf"betas_session01.{form} .*Fetch it again"):
        read(path, copied, positions)


def test_a_changed_byte_of_a_compressed_file_is_found(copied: Any, positions: np.ndarray) -> None:
    path = copied.write_session("subj01", 1, form="nii.gz")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)
    with pytest.raises(DamageError, match="damaged"):
        read(path, copied, positions)


def test_a_file_of_something_else_is_named(copied: Any, positions: np.ndarray, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.hdf5", "w") as file:
        file["imgBrick"] = np.zeros(3)
    with pytest.raises(DamageError, match="holds no 'betas', only imgBrick"):
        read(tmp_path / "other.hdf5", copied, positions)
    with h5py.File(tmp_path / "flat.hdf5", "w") as file:
        file["betas"] = np.zeros((750, 5), np.int16)
    with pytest.raises(DamageError, match=r"betas are int16 \(750, 5\)"):
        read(tmp_path / "flat.hdf5", copied, positions)
    (tmp_path / "text.nii.gz").write_bytes(gzip.compress(b"not an image" * 100))
    with pytest.raises(DamageError, match="cannot be read as NIfTI"):
        read(tmp_path / "text.nii.gz", copied, positions)


def test_betas_stored_outside_the_file_are_refused(
    copied: Any, positions: np.ndarray, tmp_path: Path
) -> None:
    shape = (750, *copied.shape[::-1])
    with h5py.File(tmp_path / "betas.hdf5", "w") as file:
        file.create_dataset(
            "betas", shape, np.int16, external=[(tmp_path / "elsewhere", 0, h5py.h5f.UNLIMITED)]
        )
    with pytest.raises(DamageError, match="holds no 'betas'"):
        read(tmp_path / "betas.hdf5", copied, positions)
