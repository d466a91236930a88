"""Volumes read one at a time, and the damage that reading finds."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest

from fmri2img.datasets.nsd.volumes import open_volumes, read_volume
from fmri2img.errors import DamageError, InputError


def nifti(path: Path, shape: tuple[int, ...] = (4, 3, 2, 6), dtype: type = np.int16) -> np.ndarray:
    values: np.ndarray = np.random.default_rng(0).integers(0, 900, shape).astype(dtype)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)
    return values


def mgh(path: Path, shape: tuple[int, ...] = (50, 1, 1, 6)) -> np.ndarray:
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    nibabel.save(nibabel.MGHImage(values, np.eye(4)), path)
    return values


@pytest.mark.parametrize("name", ["run.nii", "run.nii.gz"])
def test_nifti_volumes_are_those_of_nibabel(tmp_path: Path, name: str) -> None:
    values = nifti(tmp_path / name)
    file = open_volumes(tmp_path / name)
    assert (file.shape, file.volumes) == ((4, 3, 2), 6)
    voxels = np.array([0, 5, 6, 23])
    for number, volume in enumerate(file.read(voxels)):
        assert volume.tolist() == values[..., number].reshape(-1)[voxels].tolist()
    whole = np.stack(list(file.read()), axis=-1)
    assert np.array_equal(whole, values.reshape(24, 6))


def test_scaled_nifti_values_are_unscaled(tmp_path: Path) -> None:
    values = np.linspace(-3, 4, 24).reshape(4, 3, 2)
    image = nibabel.Nifti1Image(values, np.eye(4))
    image.set_data_dtype(np.int16)
    nibabel.save(image, tmp_path / "scaled.nii.gz")
    assert read_volume(tmp_path / "scaled.nii.gz") == pytest.approx(values, abs=1e-3)


@pytest.mark.parametrize("name", ["lh.betas.mgh", "lh.betas.mgz"])
def test_surface_frames_are_those_of_nibabel(tmp_path: Path, name: str) -> None:
    values = mgh(tmp_path / name)
    file = open_volumes(tmp_path / name)
    assert (file.shape, file.volumes) == ((50,), 6)
    assert np.array_equal(np.stack(list(file.read(np.array([3, 40])))), values[[3, 40], 0, 0].T)


def test_a_surface_label_is_one_volume(tmp_path: Path) -> None:
    values = mgh(tmp_path / "lh.streams.mgz", (50, 1, 1))
    assert np.array_equal(read_volume(tmp_path / "lh.streams.mgz"), values[:, 0, 0])
    mgh(tmp_path / "lh.betas.mgh")
    with pytest.raises(DamageError, match="holds 6 volumes"):
        read_volume(tmp_path / "lh.betas.mgh")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no file .*run\.nii\.gz"):
        open_volumes(tmp_path / "run.nii.gz")


@pytest.mark.parametrize("name", ["run.nii", "run.nii.gz", "run.mgh", "run.mgz"])
def test_a_file_that_is_no_image_is_damage(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"<html>not found</html>" * 40)
    with pytest.raises(DamageError, match=r"cannot be read as NIfTI or MGH"):
        open_volumes(tmp_path / name)


@pytest.mark.parametrize("name", ["run.nii", "run.nii.gz", "run.mgh", "run.mgz"])
def test_a_file_cut_short_is_damage(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    mgh(path) if "mg" in name else nifti(path)
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(DamageError, match=r"is cut|is damaged after|cannot be read"):
        list(open_volumes(path).read(np.array([1])))


def test_a_flipped_bit_fails_the_checksum(tmp_path: Path) -> None:
    path = tmp_path / "run.nii.gz"
    nifti(path)
    data = bytearray(gzip.decompress(path.read_bytes()))
    packed = bytearray(gzip.compress(bytes(data), compresslevel=0))
    packed[-40] ^= 0x01  # a stored block: it unpacks well, and only the checksum tells
    path.write_bytes(packed)
    with pytest.raises(DamageError, match="after 6 of 6 volumes: CRC check failed"):
        list(open_volumes(path).read())
