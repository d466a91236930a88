"""Which voxels of a time series vary most: their standard deviation over runs, in one streaming pass.

Slow drift is left out of the variance without ever holding a run: with an orthonormal basis of the drift, what
remains of a voxel's sum of squares is that sum less the squares of its coefficients.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from fmri2img.errors import InputError

SLAB = 16
"""Volumes turned into float64 at once."""


@dataclass(frozen=True)
class MostVarying:
    """`std:SHARE` or `std:COUNT`: the voxels that vary most, as a share in (0, 1) or as a number of them."""

    share: float | None = None
    count: int | None = None

    @classmethod
    def parse(cls, text: str) -> MostVarying | None:
        """What `std:...` says; None for any other text.

        Raises:
            InputError: neither a share in (0, 1) nor a number from 1.
        """
        if not text.startswith("std:"):
            return None
        value = text.removeprefix("std:")
        if re.fullmatch(r"\d+", value) and int(value) >= 1:
            return cls(count=int(value))
        if re.fullmatch(r"0?\.\d+", value) and 0 < float(value) < 1:
            return cls(share=float(value))
        raise InputError(
            f"{text!r}: after std: comes a share such as 0.05, or a number of voxels such as 15000."
        )

    def of(self, where: str, std: np.ndarray, eligible: np.ndarray) -> np.ndarray:
        """Ascending positions of the voxels chosen among the eligible ones; of equals the first.

        Raises:
            InputError: there are fewer than asked for.
        """
        candidates = np.flatnonzero(eligible)
        count = self.count if self.count is not None else round((self.share or 0) * len(candidates))
        if not 1 <= count <= len(candidates):
            raise InputError(
                f"{where}: {count} voxels are asked for, and {len(candidates)} were measured in every run: "
                "ask for at least one and at most these."
            )
        order = np.argsort(-std[candidates], kind="stable")
        return np.sort(candidates[order[:count]])


@dataclass
class DriftFreeVariance:
    """Variance of every voxel about the drift of its run, pooled over runs.

    Attributes:
        squares: float64 `(voxels,)`, sums of squares that no drift explains.
        degrees: degrees of freedom of these sums.
        measured: bool `(voxels,)`, whether the voxel's mean was positive in every run.
    """

    voxels: int

    def __post_init__(self) -> None:
        self.squares = np.zeros(self.voxels)
        self.degrees = 0
        self.measured = np.ones(self.voxels, bool)

    def add_run(self, volumes: Iterable[np.ndarray], basis: np.ndarray, used: np.ndarray) -> None:
        """Take in one run.

        Args:
            volumes: each `(voxels,)`, in order.
            basis: `(volumes, k)`, columns the first of which is one.
            used: bool `(volumes,)`, volumes that count.
        """
        orthonormal = np.zeros_like(basis)
        orthonormal[used] = np.linalg.qr(basis[used])[0]
        coefficients = np.zeros((basis.shape[1], self.voxels))
        squares, total = np.zeros(self.voxels), np.zeros(self.voxels)
        origin: np.ndarray | None = None
        for first, slab in _slabs(volumes):
            rows = np.flatnonzero(used[first : first + len(slab)])
            values = slab[rows].astype(np.float64)
            if not len(values):
                continue
            # Sums about a value of the run's own size keep the digits that sums of raw intensities lose.
            origin = values[0].copy() if origin is None else origin
            total += values.sum(axis=0)
            values -= origin
            coefficients += orthonormal[first + rows].T @ values
            squares += np.einsum("tv,tv->v", values, values)
        self.squares += np.maximum(squares - (coefficients**2).sum(axis=0), 0)
        self.degrees += int(used.sum()) - basis.shape[1]
        self.measured &= total > 0

    def std(self) -> np.ndarray:
        """float64 `(voxels,)`, in the units of the volumes."""
        result: np.ndarray = np.sqrt(self.squares / max(self.degrees, 1))
        return result


def _slabs(volumes: Iterable[np.ndarray]) -> Iterator[tuple[int, np.ndarray[Any, Any]]]:
    """Volumes stacked by `SLAB`, with the number of the first of each."""
    stacked: list[np.ndarray] = []
    first = 0
    for volume in volumes:
        stacked.append(volume)
        if len(stacked) == SLAB:
            yield first, np.stack(stacked)
            first, stacked = first + SLAB, []
    if stacked:
        yield first, np.stack(stacked)
