"""Ridge regression with the penalty chosen by cross-validation, for heads, baselines and alignment."""

import contextlib
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from himalaya.backend import set_backend
from himalaya.kernel_ridge import KernelRidgeCV
from sklearn.model_selection import PredefinedSplit

from fmri2img.errors import InputError

PENALTIES = tuple(float(10.0**k) for k in np.arange(-3, 4.1, 0.5))


@dataclass(frozen=True)
class RidgeFit:
    """y = x @ weight + bias, with the penalty of every target and predictions of rows left out of the fit."""

    weight: np.ndarray  # (features, targets) float32
    bias: np.ndarray  # (targets,) float32
    penalty: np.ndarray  # (targets,) relative to the mean squared length of a row
    held_out: np.ndarray  # (rows, targets) each row predicted by a fit that did not see its fold

    def predict(self, x: np.ndarray) -> np.ndarray:
        """(rows, features) to (rows, targets)."""
        return np.asarray(x @ self.weight + self.bias)


def fit_ridge(
    x: np.ndarray,
    y: np.ndarray,
    *,
    groups: np.ndarray | None = None,
    folds: int = 5,
    penalties: Sequence[float] = PENALTIES,
    shared_penalty: bool = False,
    seed: int = 0,
) -> RidgeFit:
    """Fit targets (rows, targets) from x (rows, features) in kernel form, so the cost grows with rows, not voxels.

    Rows of one group (repeats of one picture, say) never straddle a fold. Penalties are relative to the mean squared
    length of a centred row, so one grid serves every voxel count. The solver is himalaya's (Dupré la Tour et al.
    2022, NeuroImage), with one penalty a target, or one for all (`shared_penalty`).
    """
    if len(x) != len(y) or len(x) < 2:
        raise InputError(f"ridge needs as many rows of responses as of targets, at least 2: got {len(x)} and {len(y)}")
    fold = _folds(np.arange(len(x)) if groups is None else groups, folds, seed)
    mean_x, mean_y = x.mean(0, dtype=np.float64), y.mean(0, dtype=np.float64)
    centred, targets = (x - mean_x).astype(np.float64), (y - mean_y).astype(np.float64)
    kernel = centred @ centred.T
    unit = np.trace(kernel) / len(kernel) or 1.0
    penalty, dual = _solve(kernel / unit, targets, fold, penalties, shared_penalty)
    weight = centred.T @ (dual / unit)
    held_out = _held_out(kernel / unit, targets, fold, penalty) + mean_y
    bias = mean_y - mean_x @ weight
    return RidgeFit(weight.astype(np.float32), bias.astype(np.float32), penalty, held_out.astype(np.float32))


def _folds(groups: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """The fold of each row: groups dealt out at random, one fold after another."""
    distinct, inverse = np.unique(groups, return_inverse=True)
    count = min(folds, len(distinct))
    if count < 2:
        raise InputError(f"cross-validation needs at least 2 groups of rows, got {len(distinct)}: give more data")
    order = np.random.default_rng(seed).permutation(len(distinct))
    return np.asarray((order % count)[inverse])


def _solve(
    kernel: np.ndarray, y: np.ndarray, fold: np.ndarray, penalties: Sequence[float], shared: bool
) -> tuple[np.ndarray, np.ndarray]:
    backend = set_backend("numpy")
    split = PredefinedSplit(fold)
    solver = {"local_alpha": not shared, "score_func": _negative_error}
    model = KernelRidgeCV(
        alphas=np.asarray(penalties), kernel="precomputed", cv=split, solver_params=solver, Y_in_cpu=False
    )
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        model.fit(kernel, y)
    penalty = np.broadcast_to(backend.to_numpy(model.best_alphas_), (y.shape[1],)).copy()
    return penalty, np.asarray(model.dual_coef_)


def _negative_error(y_true: np.ndarray, y_predicted: np.ndarray) -> np.ndarray:
    """Minus the mean squared error of each target; (rows, targets) or (penalties, rows, targets)."""
    return np.asarray(-np.square(y_true - y_predicted).mean(-2))


def _held_out(kernel: np.ndarray, y: np.ndarray, fold: np.ndarray, penalty: np.ndarray) -> np.ndarray:
    """Each row's prediction by the fit on the other folds, at the chosen penalties."""
    predicted = np.zeros_like(y)
    for k in np.unique(fold):
        out = fold == k
        values, vectors = np.linalg.eigh(kernel[np.ix_(~out, ~out)])
        values = np.maximum(values, 0.0)
        rotated = vectors.T @ y[~out]
        dual = vectors @ (rotated / (values[:, None] + penalty))
        predicted[out] = kernel[np.ix_(out, ~out)] @ dual
    return predicted
