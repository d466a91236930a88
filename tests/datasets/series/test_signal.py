"""Drift, units and windows of a run against closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from fmri2img.datasets.nsd.selection import DriftFreeVariance, MostVarying
from fmri2img.datasets.nsd.signal import (
    check_basis,
    clean_run,
    drift_basis,
    window_offsets,
    window_volumes,
    without_test_volumes,
)
from fmri2img.errors import InputError

VOLUMES, TR = 226, 4 / 3
TIME = np.arange(VOLUMES) * TR
ALL = np.ones(VOLUMES, bool)


def cleaned(series: np.ndarray, *, order: int = 1, cutoff: float = 128, **options: str) -> np.ndarray:
    basis = drift_basis(VOLUMES, TR, order=order, cutoff=cutoff)
    return clean_run(series[:, None].astype(np.float32), basis, ALL, **options)[:, 0]  # type: ignore[arg-type]


def half_cosine(periods: float) -> np.ndarray:
    """A cosine of `periods` periods over the run, symmetric about its ends."""
    return np.cos(np.pi * 2 * periods * (2 * np.arange(VOLUMES) + 1) / (2 * VOLUMES))


def test_a_linear_trend_vanishes() -> None:
    assert np.abs(cleaned(1000 + 0.5 * TIME, cutoff=0)).max() < 1e-4


def test_a_linear_trend_stays_when_only_the_mean_is_taken_out() -> None:
    found = cleaned(1000 + TIME, order=0, cutoff=0, units="raw")
    assert found == pytest.approx(TIME - TIME.mean(), abs=1e-3)


def test_a_quadratic_trend_vanishes_at_order_two() -> None:
    assert np.abs(cleaned(1000 + 0.01 * TIME**2, order=2, cutoff=0)).max() < 1e-4


@pytest.mark.parametrize("periods", [0.5, 1, 1.5, 2])
def test_a_cosine_slower_than_the_cutoff_vanishes(periods: float) -> None:
    assert VOLUMES * TR / periods >= 128
    assert np.abs(cleaned(1000 + 20 * half_cosine(periods))).max() < 1e-3


def test_a_cosine_faster_than_the_cutoff_stays_as_it_is() -> None:
    signal = half_cosine(10)
    assert cleaned(1000 + 20 * signal, order=0) == pytest.approx(2 * signal, abs=1e-4)


def test_the_cutoff_is_a_period_in_seconds() -> None:
    seconds = VOLUMES * TR
    assert drift_basis(VOLUMES, TR, order=1, cutoff=128).shape[1] == 2 + 4
    assert drift_basis(VOLUMES, TR, order=1, cutoff=0).shape[1] == 2
    assert drift_basis(VOLUMES, TR, order=0, cutoff=2 * seconds).shape[1] == 2
    assert drift_basis(VOLUMES, TR, order=0, cutoff=2 * seconds + 1).shape[1] == 1


def test_z_scores_have_mean_zero_and_deviation_one() -> None:
    noise = np.random.default_rng(0).normal(500, 7, VOLUMES)
    found = cleaned(noise, units="zscore")
    assert found.mean() == pytest.approx(0, abs=1e-6)
    assert found.std(ddof=1) == pytest.approx(1, abs=1e-5)


def test_a_voxel_without_signal_is_zero_in_any_unit() -> None:
    for units in ("percent", "zscore", "raw"):
        assert not cleaned(np.zeros(VOLUMES), units=units).any()
        assert not cleaned(np.full(VOLUMES, 412.0), units=units).any()


def test_many_voxels_are_cleaned_as_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    series = np.random.default_rng(1).normal(900, 10, (VOLUMES, 7)).astype(np.float32)
    basis = drift_basis(VOLUMES, TR, order=1, cutoff=128)
    whole = clean_run(series, basis, ALL)
    monkeypatch.setattr("fmri2img.datasets.nsd.signal.BLOCK", 3)
    assert clean_run(series, basis, ALL) == pytest.approx(whole, abs=1e-6)


def test_a_run_too_short_for_its_drift_is_refused() -> None:
    basis = drift_basis(20, TR, order=1, cutoff=4)
    with pytest.raises(InputError, match=r"15 columns .* 20 volumes"):
        check_basis("subj01, session 1, run 1", basis, np.ones(20, bool))


def test_windows_begin_with_the_onset_second_and_end_before_the_last() -> None:
    assert window_offsets(TR, (4, 8)).tolist() == [3, 4, 5]
    assert window_offsets(1.0, (4, 8)).tolist() == [4, 5, 6, 7]
    assert window_offsets(TR, (4.6, 12.6)).tolist() == [4, 5, 6, 7, 8, 9]
    assert window_offsets(TR, (0, 1)).tolist() == [0]


@pytest.mark.parametrize("window", [(8, 4), (4, 4), (-2, 4), (4.1, 4.2), (4, float("nan"))])
def test_a_window_without_volumes_is_refused(window: tuple[float, float]) -> None:
    with pytest.raises(InputError, match="--window"):
        window_offsets(TR, window)


def test_a_window_past_the_end_of_the_run_is_refused() -> None:
    with pytest.raises(InputError, match="volume 220 runs past the run's 226 volumes"):
        window_volumes("run 1", np.array([10, 220]), np.arange(4, 10), 226)


def test_only_volumes_of_test_windows_alone_are_left_out() -> None:
    chosen = window_volumes("run 1", np.array([0, 3, 9]), np.arange(3, 7), 20)
    used = without_test_volumes(chosen, np.array([False, True, True]), 20)
    assert np.flatnonzero(~used).tolist() == [7, 8, 9, 12, 13, 14, 15]
    assert without_test_volumes(chosen, np.array([True, True, True]), 20).all()


def test_volumes_left_out_change_nothing_elsewhere() -> None:
    generator = np.random.default_rng(2)
    series = generator.normal(800, 9, (VOLUMES, 3)).astype(np.float32)
    used = ALL.copy()
    used[30:40] = False
    basis = drift_basis(VOLUMES, TR, order=1, cutoff=128)
    before = clean_run(series, basis, used, units="zscore")
    series[~used] += 300
    after = clean_run(series, basis, used, units="zscore")
    assert np.array_equal(before[used], after[used])
    assert not np.array_equal(before[~used], after[~used])


def test_the_streamed_deviation_is_that_of_the_residuals() -> None:
    generator = np.random.default_rng(3)
    basis = drift_basis(60, TR, order=1, cutoff=40)
    found, squares, degrees = DriftFreeVariance(5), np.zeros(5), 0
    for run in range(3):
        drift = basis @ generator.normal(0, 30, (basis.shape[1], 5))
        series = (20000 + drift + generator.normal(0, 1 + np.arange(5), (60, 5))).astype(np.float32)
        used = generator.random(60) > 0.2 * run
        found.add_run(iter(series), basis, used)
        rows = series[used].astype(np.float64)
        residual = rows - basis[used] @ np.linalg.lstsq(basis[used], rows, rcond=None)[0]
        squares += (residual**2).sum(axis=0)
        degrees += int(used.sum()) - basis.shape[1]
    assert found.std() == pytest.approx(np.sqrt(squares / degrees), rel=1e-6)
    assert found.measured.all()


def test_the_voxels_that_vary_most_are_taken_by_share_or_number() -> None:
    std = np.array([5.0, 1, 9, 9, 2, 100])
    eligible = np.array([True] * 5 + [False])
    share, count = MostVarying.parse("std:0.4"), MostVarying.parse("std:1")
    assert share is not None and share.of("subj01", std, eligible).tolist() == [2, 3]
    assert count is not None and count.of("subj01", std, eligible).tolist() == [2]
    assert MostVarying.parse("nsdgeneral") is None


@pytest.mark.parametrize("text", ["std:", "std:0", "std:1.5", "std:many", "std:-3", "std:0.0"])
def test_a_selection_that_says_neither_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"share such as 0.05"):
        MostVarying.parse(text)


def test_more_voxels_than_were_measured_are_refused() -> None:
    with pytest.raises(InputError, match="9 voxels are asked for, and 2 were measured"):
        MostVarying(count=9).of("subj01", np.ones(3), np.array([True, True, False]))
