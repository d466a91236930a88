"""Ridge regression with the penalty chosen by cross-validation, for heads, baselines and alignment."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fmri2img.errors import InputError

PENALTIES = tuple(float(10.0**k) for k in np.arange(-4, 3.1, 0.5))


@dataclass(frozen=True)
class RidgeFit:
    """y = x @ weight + bias, with the penalty of every target and predictions of rows left out of the fit."""

    weight: np.ndarray  # (features, targets) float32
    bias: np.ndarray  # (targets,) float32
    penalty: np.ndarray  # (targets,) relative to the mean squared length of a centred row
    held_out: np.ndarray  # (rows, targets) float32, each row predicted by a fit that did not see its fold

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
    seed: int = 0,
) -> RidgeFit:
    """Fit targets (rows, targets) from x (rows, features), one cross-validated penalty a target.

    Rows of one group (repeats of one picture, say) never straddle a fold. Penalties are relative to the mean squared
    length of a centred row, so one grid serves every voxel count. Each fold is one eigendecomposition of the smaller
    of the two Gram matrices, from which every penalty follows (Hastie and Tibshirani 2004, Biostatistics); himalaya's
    solvers give no held-out predictions at the chosen penalties, and `start_as_ridge` is made of these.
    """
    if len(x) != len(y) or len(x) < 2:
        raise InputError(
            f"ridge needs as many rows of responses as of targets, at least 2: got {len(x)} and {len(y)}"
        )
    fold = _folds(np.arange(len(x)) if groups is None else groups, folds, seed)
    x64, y64 = x.astype(np.float64), y.astype(np.float64)
    unit = float(np.square(x64 - x64.mean(0)).sum() / len(x64)) or 1.0
    solvers = [_Spectrum(x64[fold != k], y64[fold != k], unit) for k in range(fold.max() + 1)]
    error = np.zeros((len(penalties), y.shape[1]))
    for k, solver in enumerate(solvers):
        predict = solver.predictor(x64[fold == k])
        for i, penalty in enumerate(penalties):
            error[i] += np.square(predict(np.full(y.shape[1], penalty)) - y64[fold == k]).sum(0)
    chosen = np.asarray(penalties)[error.argmin(0)]
    held_out = np.zeros_like(y64)
    for k, solver in enumerate(solvers):
        held_out[fold == k] = solver.predictor(x64[fold == k])(chosen)
    whole = _Spectrum(x64, y64, unit)
    weight = whole.weight(chosen)
    bias = whole.mean_y - whole.mean_x @ weight
    return RidgeFit(weight.astype(np.float32), bias.astype(np.float32), chosen, held_out.astype(np.float32))


def _folds(groups: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """The fold of each row: groups dealt out at random, one fold after another."""
    distinct, inverse = np.unique(groups, return_inverse=True)
    count = min(folds, len(distinct))
    if count < 2:
        raise InputError(
            f"cross-validation needs at least 2 groups of rows, got {len(distinct)}: give more data"
        )
    order = np.random.default_rng(seed).permutation(len(distinct))
    return np.asarray((order % count)[inverse])


class _Spectrum:
    """Ridge on fixed rows, diagonalised once: weight = left @ (right / (values + penalty)).

    `rows * unit * penalty` is added to the diagonal of the Gram matrix, so a penalty means the same for a part of the
    rows as for all.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray, unit: float) -> None:
        self.mean_x, self.mean_y = x.mean(0), y.mean(0)
        centred, targets = x - self.mean_x, y - self.mean_y
        scale = unit * len(x)
        wide = centred.shape[1] > len(centred)
        gram = (centred @ centred.T if wide else centred.T @ centred) / scale
        values, vectors = np.linalg.eigh(gram)
        self.values = np.maximum(values, 0.0)[:, None]
        if wide:
            self.left, self.right = centred.T @ vectors / scale, vectors.T @ targets
        else:
            self.left, self.right = vectors, vectors.T @ (centred.T @ targets) / scale

    def weight(self, penalty: np.ndarray) -> np.ndarray:
        """(features, targets)."""
        return np.asarray(self.left @ (self.right / (self.values + penalty)))

    def predictor(self, x: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        """A function from penalties (targets,) to predictions (rows, targets) for these rows."""
        rotated = (x - self.mean_x) @ self.left

        def predict(penalty: np.ndarray) -> np.ndarray:
            return np.asarray(rotated @ (self.right / (self.values + penalty)) + self.mean_y)

        return predict
