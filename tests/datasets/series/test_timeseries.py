"""Time series of a release with known responses: what trials, voxels and errors come out."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from fmri2img.datasets import build_dataset
from fmri2img.datasets.nsd.regions import Voxels
from fmri2img.datasets.nsd.selection import MostVarying
from fmri2img.datasets.nsd.timeseries import SeriesOptions, SeriesSubject
from fmri2img.errors import DamageError, InputError

EXACT = SeriesOptions(detrend=0, high_pass=0, units="raw")
"""Nothing but the mean of the run is taken out, so responses differ from amplitudes by one number a run."""
BRAIN = np.arange(59)


def subject(release: Any, options: SeriesOptions = EXACT, **given: Any) -> SeriesSubject:
    select = Voxels((5, 4, 3), BRAIN, {"roi": np.array(["V1"] * 59), "noise_ceiling": np.ones(59)})
    usual: dict[str, Any] = {"select": select, "sessions": [1], "is_test": lambda nsd_id, session: False}
    return SeriesSubject(release.layout, release.design, release.subject, options, **(usual | given))


def stored(path: Path) -> np.ndarray:
    return np.asanyarray(nibabel.Nifti1Image.from_filename(path, mmap=False).dataobj).copy()


def by_run(values: np.ndarray) -> list[np.ndarray]:
    """Trials of a session, run by run, without each run's mean."""
    runs = np.split(values, np.cumsum([63, 62] * 6)[:-1])
    return [run - run.mean(axis=0) for run in runs]


def test_the_average_of_the_window_is_the_amplitude_of_the_response(series: Any) -> None:
    trials = subject(series.write(1)).session(1)
    assert trials.responses.shape == (750, 59) and trials.responses.dtype == np.float32
    assert trials.nsd_ids.tolist() == series.design.nsd_ids("subj01", 1).tolist()
    for found, true in zip(by_run(trials.responses), by_run(series.amplitudes[1][:, :59]), strict=True):
        assert found == pytest.approx(true, abs=1e-2)


def test_a_window_keeps_each_volume_where_it_falls(series: Any) -> None:
    options = SeriesOptions(window=(2.6, 9), keep="window", detrend=0, high_pass=0, units="raw")
    responses = (
        subject(series.write(1), options, select=Voxels((5, 4, 3), np.arange(7), {})).session(1).responses
    )
    assert responses.shape == (750, 5, 7)
    true = series.amplitudes[1][:, :7]
    for time, share in enumerate([0, 1, 1, 1, 0]):
        correlation = np.corrcoef(responses[:, time].ravel(), true.ravel())[0, 1]
        assert (correlation > 0.99) if share else abs(correlation) < 0.1


def test_units_are_per_cent_of_the_mean(series: Any) -> None:
    options = SeriesOptions(detrend=0, high_pass=0)
    trials = subject(series.write(1), options).session(1)
    slope = np.polyfit(series.amplitudes[1][:, :59].ravel(), trials.responses.ravel(), 1)[0]
    assert slope == pytest.approx(0.1, rel=3e-2)  # 1 of about 1000


def test_drift_of_scanner_and_head_does_not_reach_the_responses(
    series: Any, design: Any, tmp_path: Any
) -> None:
    def drift(run: int, volumes: np.ndarray) -> np.ndarray:
        return 3.0 * volumes + 100 * np.cos(np.pi * (2 * volumes + 1) / len(volumes)) + 50 * run

    options = SeriesOptions(units="raw")
    still = subject(series.write(1), options).session(1).responses
    moved = subject(series.write(1, drift=drift), options).session(1).responses
    assert np.abs(moved - still).max() < 1  # rounding to int16
    assert np.abs(subject(series, EXACT).session(1).responses - still).max() > 50


def test_runs_of_rest_are_passed_over(series: Any) -> None:
    series.rest = True
    trials = subject(series.write(1)).session(1)
    assert len(trials.responses) == 750
    assert np.corrcoef(trials.responses.ravel(), series.amplitudes[1][:, :59].ravel())[0, 1] > 0.99


def test_the_voxels_that_vary_most_are_found_over_runs(series: Any) -> None:
    found = subject(series.write(1, 2), select=MostVarying(count=16), sessions=[1, 2])
    strong = np.flatnonzero(np.arange(59) % 7 >= 5)
    assert found.positions.tolist() == strong.tolist()
    table = found.voxel_table()
    assert table["x"].tolist() == (strong // 12).tolist() and table["z"].tolist() == (strong % 3).tolist()
    assert table["series_std"].min() > 40 and found.session(2).responses.shape == (750, 16)


def test_voxels_outside_the_brain_are_never_selected(series: Any) -> None:
    assert 59 not in subject(series.write(1), select=MostVarying(share=0.99)).positions
    with pytest.raises(InputError, match=r"60 voxels are asked for, and 59"):
        _ = subject(series, select=MostVarying(count=60)).voxels


def test_selection_and_drift_depend_on_no_volume_of_test_windows_alone(series: Any) -> None:
    given = {
        "select": MostVarying(count=8),
        "is_test": lambda nsd_id, session: series.design.is_shared(nsd_id),
    }
    options = SeriesOptions(units="zscore")
    before = subject(series.write(1), options, **given)
    std, first = before.voxel_table()["series_std"], before.session(1)
    test = np.array([series.design.is_shared(n) for n in first.nsd_ids])
    path = series.path("timeseries", 1, 1)
    rows = np.loadtxt(series.path("design", 1, 1), dtype=int)
    image = stored(path)
    onset = next(int(row) for row in np.flatnonzero(rows) if series.design.is_shared(int(rows[row]) - 1))
    image[..., onset + 3 : onset + 6] += 5000
    nibabel.save(nibabel.Nifti1Image(image, np.eye(4)), path)
    after = subject(series, options, **given)
    assert np.array_equal(after.positions, before.positions)
    assert np.array_equal(after.voxel_table()["series_std"], std)
    assert np.array_equal(after.session(1).responses[~test], first.responses[~test])
    assert not np.array_equal(after.session(1).responses[test], first.responses[test])


def test_noise_ceilings_of_betas_are_not_given_for_time_series(series: Any) -> None:
    assert set(subject(series.write(1)).voxel_table()) == {"roi"}


def test_a_data_set_is_built_of_averages(series: Any, one_subject: Any, tmp_path: Any) -> None:
    release = series.write(1, 2)
    source = one_subject({"subj01": subject(release, SeriesOptions(), sessions=[1, 2])}, release.design)
    built = build_dataset(source, tmp_path / "out", samples_per_shard=400)
    assert built.voxels("subj01") == 59
    train = built.samples("subj01", "train")
    assert int(train.repeats.sum()) + int(built.samples("subj01", "test").repeats.sum()) == 1500
    assert built.responses(train, 0).shape[-1] == 59


def test_a_data_set_is_built_of_windows(series: Any, one_subject: Any, tmp_path: Any) -> None:
    options = SeriesOptions(window=(4.6, 12.6), keep="window", units="zscore")
    source = one_subject({"subj01": subject(series.write(1), options)}, series.design)
    built = build_dataset(source, tmp_path / "out", samples_per_shard=400)
    train = built.samples("subj01", "train")
    assert built.responses(train, 0).shape == (int(train.repeats[0]), 6, 59)


def test_a_missing_run_is_named(series: Any) -> None:
    series.write(1).path("timeseries", 1, 7).unlink()
    with pytest.raises(InputError, match=r"timeseries_session01_run07\.nii\.gz is missing"):
        subject(series).session(1)


def test_a_missing_design_is_named(series: Any) -> None:
    series.write(1).path("design", 1, 2).unlink()
    with pytest.raises(InputError, match=r"design_session01_run02\.tsv is missing"):
        subject(series).session(1)


def test_a_run_of_another_length_than_its_design_is_damage(series: Any) -> None:
    path = series.write(1).path("timeseries", 1, 3)
    image = stored(path)[..., :200]
    nibabel.save(nibabel.Nifti1Image(image, np.eye(4)), path)
    with pytest.raises(DamageError, match=r"run03\.nii\.gz has 200 volumes and design_\S+ 225 rows"):
        subject(series).session(1)


def test_a_design_that_shows_other_pictures_is_damage(series: Any) -> None:
    path = series.write(1).path("design", 1, 3)
    path.write_text(path.read_text().replace(f"{series.design.nsd_ids('subj01', 1)[130] + 1}\n", "17\n"))
    with pytest.raises(DamageError, match=r"750 pictures that are not the 750"):
        subject(series).session(1)


@pytest.mark.parametrize("text", ["1\ntwo\n", "", "0\n-4\n"])
def test_a_design_that_is_no_column_of_numbers_is_damage(series: Any, text: str) -> None:
    series.write(1).path("design", 1, 3).write_text(text)
    with pytest.raises(DamageError, match=r"design_session01_run03\.tsv must be a column"):
        subject(series).session(1)


def test_a_run_of_another_shape_is_damage(series: Any) -> None:
    path = series.write(1).path("timeseries", 1, 3)
    nibabel.save(nibabel.Nifti1Image(np.zeros((5, 4, 2, 226), np.int16), np.eye(4)), path)
    with pytest.raises(DamageError, match=r"different shapes"):
        subject(series).session(1)


def test_a_mask_of_another_space_is_refused(series: Any) -> None:
    with pytest.raises(DamageError, match=r"volumes of \(5, 4, 3\), and the ROIs .* \(9, 4, 3\)"):
        subject(series.write(1), select=Voxels((9, 4, 3), np.arange(4), {})).session(1)


def test_values_that_are_not_finite_are_damage(series: Any) -> None:
    path = series.write(1).path("timeseries", 1, 3)
    image = stored(path).astype(np.float32)
    image[1, 1, 1, 8] = np.nan
    nibabel.save(nibabel.Nifti1Image(image, np.eye(4)), path)
    with pytest.raises(DamageError, match=r"run03\.nii\.gz holds values that are not finite at 1 places"):
        subject(series).session(1)


def test_a_run_that_ends_early_is_damage(series: Any) -> None:
    path = series.write(1).path("timeseries", 1, 3)
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-500]))
    with pytest.raises(DamageError, match=r"after 221 of 226 volumes: volume 222 of 226 is cut"):
        subject(series).session(1)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"space": "MNI"}, "MNI"),
        ({"window": (8.0, 4.0)}, "--window 8 4"),
        ({"high_pass": 2.0}, "--high-pass 2"),
        ({"high_pass": float("nan")}, "--high-pass nan"),
        ({"detrend": -1}, "--detrend -1"),
        ({"tr": 0.0}, "--tr 0"),
        ({"keep": "both"}, "keep 'both'"),
        ({"units": "volts"}, "units 'volts'"),
    ],
)
def test_options_that_cannot_be_used_are_refused(given: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        SeriesOptions(**given)


def test_a_window_past_the_end_of_a_run_is_refused(series: Any) -> None:
    with pytest.raises(InputError, match=r"subj01, session 1, run 1: the window of the trial"):
        subject(series.write(1), SeriesOptions(window=(4, 40))).session(1)
