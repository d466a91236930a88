"""How responses are normalised: by means and deviations of training trials, in float32, stored as float16."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from fmri2img.datasets.statistics import Moments
from fmri2img.errors import InputError

Normalise = Literal["session", "pooled", "none"]
LARGEST = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class Scale:
    """Mean, and one over the standard deviation, of each voxel: float32 `(voxels,)`."""

    mean: np.ndarray
    factor: np.ndarray

    @classmethod
    def of(cls, moments: Moments) -> Scale:
        """The scale that makes these moments 0 and 1; a constant voxel is only centred."""
        mean, std, _ = moments.mean_std()
        factor = np.minimum(1 / std, np.finfo(np.float32).max)
        return cls(mean.astype(np.float32), factor.astype(np.float32))

    def apply(self, responses: np.ndarray) -> tuple[np.ndarray, int]:
        """Normalise trials, float32 `(trials, ..., voxels)`.

        Returns:
            float16 of the same shape, and how many values were clipped to the largest float16.
        """
        out, clipped = np.empty(responses.shape, np.float16), 0
        one = np.empty(responses.shape[1:], np.float32)  # a trial at a time stays in the processor's cache
        for trial, response in enumerate(responses):
            with np.errstate(over="ignore"):  # what is too large is clipped and counted
                np.subtract(response, self.mean, out=one)
                np.multiply(one, self.factor, out=one)
            if not fits(one):
                clipped += int((np.abs(one) > LARGEST).sum())
                np.clip(one, -LARGEST, LARGEST, out=one)
            out[trial] = one
        return out, clipped


def fits(response: np.ndarray) -> bool:
    """Whether every value is within what float16 can hold."""
    return bool(response.min() >= -LARGEST and response.max() <= LARGEST)


def own_scale(normalise: Normalise, moments: Moments, steps: int) -> Scale | None:
    """The scale of a session by its own training trials; None if it takes another or none.

    Args:
        normalise: of the build.
        moments: of the session's training trials.
        steps: time points of a trial.
    """
    return Scale.of(moments) if normalise == "session" and moments.count >= 2 * steps else None


@dataclass(frozen=True)
class Pooled:
    """What the sessions of a subject that have no scale of their own take.

    Attributes:
        scale: None to store responses as they are.
        sessions: numbers of the sessions that take it where each should have its own.
        constant: largest number of constant voxels in any statistic that was used.
    """

    scale: Scale | None
    sessions: list[int] = field(default_factory=list)
    constant: int = 0


def pool(
    subject: str, normalise: Normalise, sessions: Sequence[tuple[int, int, Moments]], steps: int
) -> Pooled:
    """Pool the moments of a subject's sessions, each as (number, trials, moments of its training trials).

    Raises:
        InputError: fewer than two training trials, or responses too small to be stored as they are.
    """
    pooled = Moments()
    for _, _, moments in sessions:
        pooled.merge(moments)
    if normalise == "none":
        spread = float(np.median(pooled.mean_std()[1])) if pooled.count else 1.0
        if spread < 1e-3:
            raise InputError(
                f"{subject}: responses vary by {spread:g} (median over voxels), too little for float16: "
                "multiply them, or build with normalise 'session'."
            )
        return Pooled(None)
    if pooled.count < 2 * steps:
        raise InputError(
            f"{subject} has {pooled.count // steps} training trials, and z-scoring needs two of them: "
            "change the split, or build with normalise 'none'."
        )
    others = [number for number, _, moments in sessions if own_scale(normalise, moments, steps) is None]
    used = [moments for number, _, moments in sessions if number not in others]
    constant = max(moments.mean_std()[2] for moments in ([*used, pooled] if others else used))
    listed = [number for number, trials, _ in sessions if number in others and trials]
    return Pooled(Scale.of(pooled), listed if normalise == "session" else [], constant)
