"""Ridge regression against the closed form and a cross-validation written out by hand."""

import numpy as np
import pytest

from fmri2img.errors import InputError
from fmri2img.models.ridge import PENALTIES, RidgeFit, fit_ridge


def solved(x: np.ndarray, y: np.ndarray, penalty: np.ndarray, unit: float) -> tuple[np.ndarray, np.ndarray]:
    """Weight and bias by np.linalg.solve, a target at a time."""
    centred, gram = x - x.mean(0), (x - x.mean(0)).T @ (x - x.mean(0))
    weight = np.stack(
        [
            np.linalg.solve(
                gram + len(x) * unit * p * np.eye(x.shape[1]), centred.T @ (y[:, j] - y[:, j].mean())
            )
            for j, p in enumerate(penalty)
        ],
        axis=1,
    )
    return weight, y.mean(0) - x.mean(0) @ weight


def unit_of(x: np.ndarray) -> float:
    """The mean squared length of a centred row."""
    return float(np.mean(np.sum((x - x.mean(0)) ** 2, axis=1)))


def world(rows: int, features: int) -> tuple[np.ndarray, np.ndarray]:
    """Five targets, from one that is all signal to one that is all noise, so that penalties differ."""
    generator = np.random.default_rng([rows, features])
    x = generator.normal(3, 2, (rows, features))
    signal = (x - 3) @ generator.normal(size=(features, 5)) / np.sqrt(features)
    noise = generator.normal(size=(rows, 5)) * np.array([0.001, 0.3, 1, 5, 1000])
    return x, signal + noise + 7


def left_out_rows(fit: RidgeFit, x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
    """The folds that the fit used, found again: rows whose held-out prediction is that of a refit without them."""
    unit, folds = unit_of(x), []
    for candidate in range(5):
        order = np.random.default_rng(0).permutation(len(x)) % 5
        rows = np.flatnonzero(order == candidate)
        rest = np.setdiff1d(np.arange(len(x)), rows)
        weight, bias = solved(x[rest], y[rest], fit.penalty, unit)
        np.testing.assert_allclose(fit.held_out[rows], x[rows] @ weight + bias, rtol=1e-4, atol=1e-4)
        folds.append(rows)
    return folds


@pytest.mark.parametrize(("rows", "features"), [(60, 8), (20, 50), (30, 30)])
def test_a_fit_is_the_closed_form_at_its_penalties(rows: int, features: int) -> None:
    x, y = world(rows, features)
    fit = fit_ridge(x, y)
    weight, bias = solved(x, y, fit.penalty, unit_of(x))
    assert len(set(fit.penalty.tolist())) > 1
    size = np.abs(weight).max(0)
    np.testing.assert_allclose(fit.weight / size, weight / size, atol=1e-5)
    np.testing.assert_allclose(fit.predict(x), x @ weight + bias, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("rows", "features"), [(60, 8), (20, 50)])
def test_held_out_predictions_are_refits_without_the_fold(rows: int, features: int) -> None:
    x, y = world(rows, features)
    folds = left_out_rows(fit_ridge(x, y), x, y)
    assert sorted(np.concatenate(folds).tolist()) == list(range(rows))


@pytest.mark.parametrize(("rows", "features"), [(60, 8), (20, 50)])
def test_the_penalty_is_the_one_with_the_least_cross_validated_error(rows: int, features: int) -> None:
    x, y = world(rows, features)
    fit = fit_ridge(x, y)
    folds, unit = left_out_rows(fit, x, y), unit_of(x)
    error = np.zeros((len(PENALTIES), y.shape[1]))
    for i, penalty in enumerate(PENALTIES):
        for out in folds:
            rest = np.setdiff1d(np.arange(rows), out)
            weight, bias = solved(x[rest], y[rest], np.full(y.shape[1], penalty), unit)
            error[i] += np.sum((x[out] @ weight + bias - y[out]) ** 2, axis=0)
    assert fit.penalty.tolist() == [PENALTIES[i] for i in error.argmin(0)]


def test_rows_of_one_group_never_straddle_a_fold() -> None:
    # Features are one-hot of the group, so a row can be predicted from another of its group only: where a group
    # lies in one fold, the held-out prediction cannot know the group's own value.
    groups = np.repeat(np.arange(12), 3)
    x, y = np.eye(12)[groups], 100.0 * (groups[:, None] == 4)
    fit = fit_ridge(x, y, groups=groups, penalties=[1e-6])
    assert np.abs(fit.held_out[groups == 4]).max() < 20
    split = fit_ridge(x, y, penalties=[1e-6])
    assert split.held_out[groups == 4].max() > 80


def test_groups_may_have_any_names_and_order() -> None:
    x, y = world(24, 6)
    names = np.arange(24) // 2
    shuffled = np.random.default_rng(1).permutation(24)
    fit = fit_ridge(x, y, groups=names)
    other = fit_ridge(x[shuffled], y[shuffled], groups=names[shuffled])
    assert fit.penalty.tolist() == other.penalty.tolist()
    np.testing.assert_allclose(fit.held_out[shuffled], other.held_out, rtol=1e-4, atol=1e-4)


def test_the_scale_of_responses_does_not_change_predictions() -> None:
    x, y = world(40, 10)
    one, thousand = fit_ridge(x, y), fit_ridge(1000 * x, y)
    assert one.penalty.tolist() == thousand.penalty.tolist()
    np.testing.assert_allclose(one.held_out, thousand.held_out, rtol=1e-4, atol=1e-4)


def test_responses_that_never_change_predict_the_mean() -> None:
    y = np.random.default_rng(0).normal(size=(10, 2))
    fit = fit_ridge(np.ones((10, 3)), y)
    np.testing.assert_allclose(fit.predict(np.ones((4, 3))), np.tile(y.mean(0), (4, 1)), rtol=1e-6)


@pytest.mark.parametrize(("x", "y", "groups"), [(5, 6, None), (1, 1, None), (6, 6, [3] * 6)])
def test_too_few_rows_or_groups_are_refused(x: int, y: int, groups: list[int] | None) -> None:
    with pytest.raises(InputError, match="at least 2"):
        fit_ridge(np.ones((x, 2)), np.ones((y, 1)), groups=None if groups is None else np.array(groups))
