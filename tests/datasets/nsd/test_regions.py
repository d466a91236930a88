"""Voxels are the union of the ROIs asked for, in the order of argwhere, each with its labels and noise ceiling."""

from __future__ import annotations

from typing import Any

import nibabel
import numpy as np
import pytest

from fmri2img.datasets.nsd.layout import NsdLayout
from fmri2img.datasets.nsd.regions import Voxels, noise_ceiling, select_voxels
from fmri2img.errors import DamageError, InputError


def select(release: Any, *rois: str, subject: str = "subj01") -> Voxels:
    return select_voxels(NsdLayout(release.root), subject, rois, space="func1pt8mm", version="b3")


def volume(release: Any, name: str) -> np.ndarray:
    path = release.root / f"nsddata/ppdata/subj01/func1pt8mm/roi/{name}.nii.gz"
    return np.asarray(nibabel.Nifti1Image.from_filename(path).dataobj)


def test_voxels_come_in_the_order_of_argwhere(release: Any) -> None:
    chosen = select(release, "nsdgeneral")
    assert chosen.shape == release.shape
    places = np.stack([chosen.table[axis] for axis in "xyz"], axis=1)
    np.testing.assert_array_equal(places, np.argwhere(release.mask))
    np.testing.assert_array_equal(chosen.positions, np.flatnonzero(release.mask))


def test_rois_and_single_labels_are_united(release: Any) -> None:
    visual, streams = volume(release, "prf-visualrois"), volume(release, "streams")
    chosen = select(release, "prf-visualrois:V1d", "streams:streams-2")
    np.testing.assert_array_equal(chosen.positions, np.flatnonzero((visual == 2) | (streams == 2)))
    half = select(release, "lh.nsdgeneral")
    assert len(half.positions) and (half.table["x"] < release.shape[0] // 2).all()


def test_the_table_names_labels_and_hemispheres(release: Any) -> None:
    table = select(release, "nsdgeneral").table
    visual = volume(release, "prf-visualrois")[release.mask]
    streams = volume(release, "streams")[release.mask]
    names = np.array(["", "V1v", "V1d", "V2v"])[visual.clip(0)]
    np.testing.assert_array_equal(table["prf-visualrois"], names)
    others = np.array(["", "streams-1", "streams-2"])[streams.clip(0)]
    expected = np.where(names != "", names, np.where(others != "", others, "nsdgeneral"))
    np.testing.assert_array_equal(table["roi"], expected)
    left = table["x"] < release.shape[0] // 2
    np.testing.assert_array_equal(table["hemisphere"], np.where(left, "lh", "rh"))


def test_noise_ceilings_are_those_of_three_repeats(release: Any) -> None:
    assert noise_ceiling(np.array([0.0, 1.0, np.nan])) == pytest.approx([0, 0.75, 0])
    assert noise_ceiling(np.array([0.5]), repeats=1) == pytest.approx([0.2])
    table = select(release, "nsdgeneral").table
    path = "nsddata_betas/ppdata/subj01/func1pt8mm/betas_fithrf_GLMdenoise_RR/ncsnr.nii.gz"
    ncsnr = np.asarray(nibabel.Nifti1Image.from_filename(release.root / path).dataobj)[release.mask]
    assert table["noise_ceiling"][0] == 0 and table["ncsnr"][0] == 0 and np.isnan(ncsnr[0])
    np.testing.assert_allclose(
        table["noise_ceiling"][1:], ncsnr[1:] ** 2 / (ncsnr[1:] ** 2 + 1 / 3), rtol=1e-5
    )


def test_a_release_without_tables_ceilings_or_hemispheres_does_without(copied: Any) -> None:
    for path in [
        *copied.root.rglob("*.ctab"),
        *copied.root.rglob("*h.*.nii.gz"),
        *copied.root.rglob("ncsnr*"),
    ]:
        path.unlink()
    table = select(copied, "nsdgeneral").table
    assert set(table) == {"roi", "x", "y", "z", "nsdgeneral", "streams", "prf-visualrois"}
    assert set(table["prf-visualrois"]) <= {"", *(f"prf-visualrois-{n}" for n in (1, 2, 3))}


def test_names_that_are_not_there_say_which_are(release: Any) -> None:
    with pytest.raises(
        InputError, match=r"'V1' is no ROI of subj01 in func1pt8mm of NSD: use one of .*nsdgeneral"
    ):
        select(release, "V1")
    with pytest.raises(InputError, match="'V9' is no label of prf-visualrois: use one of V1v, V1d, V2v"):
        select(release, "prf-visualrois:V9")
    with pytest.raises(InputError, match="'subj09' is no subject of NSD"):
        select(release, "nsdgeneral", subject="subj09")
    with pytest.raises(
        InputError, match=r"roi/nsdgeneral.nii.gz is missing: bring it with: fmri2img data fetch"
    ):
        select(release, "nsdgeneral", subject="subj05")


def test_volumes_that_do_not_fit_each_other_are_named(copied: Any) -> None:
    folder = "nsddata/ppdata/subj01/func1pt8mm/roi"
    copied.write_volume(f"{folder}/streams.nii.gz", np.zeros((6, 7, 4)))
    with pytest.raises(DamageError, match=r"nsdgeneral.nii.gz is \(6, 7, 5\)|streams.nii.gz is \(6, 7, 4\)"):
        select(copied, "nsdgeneral")
    copied.write_volume(f"{folder}/streams.nii.gz", np.full(copied.shape, 0.5))
    with pytest.raises(DamageError, match=r"streams.nii.gz must hold whole numbers"):
        select(copied, "nsdgeneral")
    copied.write_volume(f"{folder}/streams.nii.gz", np.full(copied.shape, -1))
    with pytest.raises(InputError, match="streams of subj01 in func1pt8mm hold no voxel"):
        select(copied, "streams")
