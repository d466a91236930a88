"""Means and standard deviations of streams, exact however the stream is cut (Chan, Golub, LeVeque 1983)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CONSTANT = 1e-6
"""A standard deviation below this share of the mean's size is rounding noise of a constant float32 value."""


@dataclass
class Moments:
    """Count, mean and sum of squared deviations, in float64, of rows of any shape."""

    count: int = 0
    mean: np.ndarray | float = 0.0
    squares: np.ndarray | float = 0.0

    def add(self, rows: np.ndarray) -> None:
        """Take in rows `(n, ...)`."""
        if len(rows) == 0:
            return
        rows = np.asarray(rows, np.float64)
        mean = rows.mean(axis=0)
        self.merge(Moments(len(rows), mean, ((rows - mean) ** 2).sum(axis=0)))

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
