"""Means and standard deviations of streams, exact however the stream is cut (Chan, Golub, LeVeque 1983)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CONSTANT = 1e-6
"""A standard deviation below this share of the mean's size is rounding noise of a constant float32 value."""
BLOCK = 1 << 16
"""Values converted to float64 at a time: 512 KiB, which stays in the processor's cache."""


@dataclass
class Moments:
    """Count, mean and sum of squared deviations, in float64, of rows of any shape."""

    count: int = 0
    mean: np.ndarray | float = 0.0
    squares: np.ndarray | float = 0.0

    def add(self, rows: np.ndarray, where: np.ndarray | None = None) -> None:
        """Take in rows `(n, ...)`, or those of them that the boolean `where` `(n,)` marks.

        Works through the columns in blocks, so that no float64 copy of all rows is made; a column's figures
        are the same for any block.
        """
        count = len(rows) if where is None else int(where.sum())
        if count == 0:
            return
        rows = np.asarray(rows)
        flat = rows.reshape(len(rows), -1)
        mean, squares = np.empty(flat.shape[1]), np.empty(flat.shape[1])
        step = max(1, BLOCK // count)
        for first in range(0, flat.shape[1], step):
            part = slice(first, first + step)
            block = np.array(flat[:, part] if where is None else flat[where, part], np.float64)
            mean[part] = block.mean(axis=0)
            block -= mean[part]
            np.square(block, out=block)
            squares[part] = block.sum(axis=0)
        self.merge(Moments(count, mean.reshape(rows.shape[1:]), squares.reshape(rows.shape[1:])))

    def merge(self, other: Moments) -> None:
        """Take in what another one has seen."""
        total = self.count + other.count
        if other.count == 0:
            return
        delta = other.mean - self.mean
        self.squares = self.squares + other.squares + delta**2 * (self.count * other.count / total)
        self.mean = self.mean + delta * (other.count / total)
        self.count = total

    def mean_std(self) -> tuple[np.ndarray, np.ndarray, int]:
        """Mean and population standard deviation (1 where constant), and how many entries are constant."""
        mean = np.asarray(self.mean, np.float64)
        std = np.sqrt(np.asarray(self.squares, np.float64) / max(self.count, 1))
        constant = std <= CONSTANT * np.abs(mean)
        return mean, np.where(constant, 1.0, std), int(constant.sum())
