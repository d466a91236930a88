"""Surface betas and label files whose values are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from fmri2img.datasets import build_dataset
from fmri2img.datasets.nsd.surface import SurfaceSubject
from fmri2img.datasets.nsd.vertices import Vertices, select_vertices
from fmri2img.errors import DamageError, InputError

GENERAL = [*range(5, 15), *range(45, 55)]
"""Positions of nsdgeneral: vertices 5 to 14 of either hemisphere, 40 of them left."""


def subject(
    release: Any, vertices: Vertices | None = None, sessions: tuple[int, ...] = (1,)
) -> SurfaceSubject:
    chosen = vertices or select_vertices(release.layout, ["nsdgeneral"])
    return SurfaceSubject(release.layout, release.design, release.subject, "b3", chosen, sessions)


def test_responses_are_the_stored_betas_of_both_hemispheres(surface: Any) -> None:
    trials = subject(surface.labels().write(1)).session(1)
    assert trials.responses.dtype == np.float32
    expected = np.concatenate([surface.betas[1, h][5:15] for h in ("lh", "rh")]).T
    assert np.array_equal(trials.responses, expected)
    assert trials.nsd_ids.tolist() == surface.design.nsd_ids("subj01", 1).tolist()


def test_the_voxel_table_says_where_each_vertex_lies(surface: Any) -> None:
    table = subject(surface.labels().write(1)).voxel_table()
    assert table["hemisphere"].tolist() == ["lh"] * 10 + ["rh"] * 10
    assert table["vertex"].tolist() == [*range(5, 15)] * 2
    assert table["roi"].tolist() == (["nsdgeneral"] * 5 + ["early"] * 5) * 2
    assert table["streams"].tolist() == ([""] * 5 + ["early"] * 5) * 2
    assert "noise_ceiling" not in table


def test_noise_ceilings_are_those_of_the_chosen_vertices(surface: Any) -> None:
    surface.labels().write(1)
    ncsnr = np.linspace(0, 2, 40).astype(np.float32)
    ncsnr[6] = np.nan
    for hemisphere, values in (("lh", ncsnr), ("rh", ncsnr[:30])):
        image = nibabel.MGHImage(values.reshape(-1, 1, 1), np.eye(4))
        nibabel.save(image, surface.folder / f"{hemisphere}.ncsnr.mgh")
    table = subject(surface).voxel_table()
    expected = np.nan_to_num(ncsnr[5:15])
    assert table["ncsnr"].tolist() == [*expected, *expected]
    assert table["noise_ceiling"][:10] == pytest.approx(expected**2 / (expected**2 + 1 / 3))


@pytest.mark.parametrize(
    ("rois", "positions"),
    [
        (["nsdgeneral"], GENERAL),
        (["streams:ventral"], [*range(15, 25), *range(55, 65)]),
        (["nsdgeneral", "streams"], [*range(5, 25), *range(45, 65)]),
    ],
)
def test_label_files_and_single_labels_are_united(
    surface: Any, rois: list[str], positions: list[int]
) -> None:
    assert select_vertices(surface.labels().layout, rois).positions.tolist() == positions


def test_a_mask_of_the_user_chooses_vertices_and_labels_name_them(surface: Any, tmp_path: Path) -> None:
    for hemisphere, count in zip(("lh", "rh"), surface.counts, strict=True):
        np.save(tmp_path / f"{hemisphere}.all-vertices_fsaverage_space.npy", np.arange(count) % 10 == 9)
    chosen = select_vertices(surface.labels().layout, [str(tmp_path / "lh.all-vertices_fsaverage_space.npy")])
    assert chosen.positions.tolist() == [9, 19, 29, 39, 49, 59, 69]
    assert chosen.table["roi"].tolist() == ["nsdgeneral", "ventral", "", "", "nsdgeneral", "ventral", ""]


def test_vertices_without_data_in_some_session_are_left_out(surface: Any) -> None:
    surface.labels().write(1, 2)
    values = surface.betas[2, "rh"].copy()
    values[7:9] = np.nan
    surface.save(2, "rh", values)
    found = subject(surface, sessions=(1, 2))
    assert found.voxels == 18
    kept = [*range(5, 15), 5, 6, *range(9, 15)]
    assert found.voxel_table()["vertex"].tolist() == kept
    assert np.array_equal(found.session(1).responses[:, 10:], surface.betas[1, "rh"][kept[10:]].T)


def test_vertices_without_data_on_some_trials_are_damage(surface: Any) -> None:
    values = surface.labels().write(1).betas[1, "lh"].copy()
    values[7, 40] = np.nan
    surface.save(1, "lh", values)
    with pytest.raises(DamageError, match=r"lh\.betas_session01\.mgh, trial 41: 1 vertices"):
        subject(surface).session(1)


def test_a_data_set_is_built_of_surface_betas(surface: Any, one_subject: Any, tmp_path: Path) -> None:
    source = one_subject({"subj01": subject(surface.labels().write(1))}, surface.design)
    built = build_dataset(source, tmp_path / "out", samples_per_shard=400)
    assert built.voxels("subj01") == 20
    assert built.voxel_table("subj01")["vertex"].tolist() == [*range(5, 15)] * 2


def test_a_missing_session_is_named(surface: Any) -> None:
    surface.labels().write(1)
    with pytest.raises(InputError, match=r"lh\.betas_session02\.mgh is missing"):
        subject(surface, sessions=(1, 2)).session(2)


def test_a_missing_label_file_is_named(surface: Any) -> None:
    with pytest.raises(InputError, match=r"lh\.HCP_MMP1\.mgz is missing"):
        select_vertices(surface.labels().layout, ["HCP_MMP1"])


def test_an_unknown_label_is_answered_with_those_there_are(surface: Any) -> None:
    with pytest.raises(InputError, match=r"'V9' is no label of streams: use one of early, ventral"):
        select_vertices(surface.labels().layout, ["streams:V9"])


def test_labels_of_another_size_than_the_betas_are_refused(surface: Any) -> None:
    surface.labels().write(1)
    surface.counts = (50, 30)
    with pytest.raises(DamageError, match=r"\(40, 750\), and must hold decimal numbers \(50, 750\)"):
        subject(surface.labels()).session(1)


def test_label_files_of_different_sizes_are_refused(surface: Any) -> None:
    surface.labels().label("HCP_MMP1", [np.ones(41), np.ones(30)], {1: "V1"})
    with pytest.raises(DamageError, match=r"streams has \(40, 30\) vertices .* HCP_MMP1 \(41, 30\)"):
        select_vertices(surface.layout, ["HCP_MMP1"])


def test_betas_of_another_number_of_trials_are_damage(surface: Any) -> None:
    surface.labels().write(1)
    surface.save(1, "rh", surface.betas[1, "rh"][:, :600])
    with pytest.raises(DamageError, match=r"rh\.betas_session01\.mgh holds \S+ \(30, 600\)"):
        subject(surface).session(1)


def test_betas_cut_short_are_damage(surface: Any) -> None:
    path = surface.labels().write(1).folder / "lh.betas_session01.mgh"
    path.write_bytes(path.read_bytes()[:50_000])
    with pytest.raises(DamageError, match=r"is cut: its header announces \d+ bytes, and it has 50000"):
        subject(surface).session(1)


@pytest.mark.parametrize(
    ("name", "rule"),
    [("mask.npy", "with lh. in its name"), ("lh.mask.npy", "lh. and rh. files side by side")],
)
def test_a_mask_without_its_other_half_is_refused(surface: Any, tmp_path: Path, name: str, rule: str) -> None:
    np.save(tmp_path / name, np.ones(40))
    with pytest.raises(InputError, match=rule):
        select_vertices(surface.labels().layout, [str(tmp_path / name)])


def test_a_mask_that_holds_objects_is_never_loaded(surface: Any, tmp_path: Path) -> None:
    for hemisphere in ("lh", "rh"):
        np.save(tmp_path / f"{hemisphere}.mask.npy", np.array([{}], object))
    with pytest.raises(DamageError, match=r"lh\.mask\.npy cannot be read"):
        select_vertices(surface.labels().layout, [str(tmp_path / "lh.mask.npy")])


def test_no_roi_or_an_empty_one_is_refused(surface: Any) -> None:
    with pytest.raises(InputError, match="No ROI"):
        select_vertices(surface.labels().layout, [])
    surface.label("empty", [np.zeros(40), np.zeros(30)], {})
    with pytest.raises(InputError, match="empty hold no vertex"):
        select_vertices(surface.layout, ["empty"])
