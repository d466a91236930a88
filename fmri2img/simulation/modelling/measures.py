"""Measures of the simulation's models, each from its definition: PSNR, Fréchet distance, two-way identification."""

import numpy as np
from scipy import linalg


def psnr(made: np.ndarray, true: np.ndarray) -> float:
    """Mean over pictures, uint8 (n, h, w, 3), of the peak signal-to-noise ratio in decibels."""
    error = ((made.astype(np.float64) - true.astype(np.float64)) ** 2).mean(axis=(1, 2, 3))
    return float((10 * np.log10(255**2 / np.maximum(error, 1e-12))).mean())


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Fréchet distance of normal distributions with the moments of embeddings (n, d) and (m, d) (Heusel et al. 2017).

    Grows as samples get fewer: compare only distances of as many.
    """
    covariance_a, covariance_b = np.cov(a.T), np.cov(b.T)
    root = linalg.sqrtm(covariance_a @ covariance_b)
    apart = ((a.mean(axis=0) - b.mean(axis=0)) ** 2).sum()
    return float(apart + np.trace(covariance_a + covariance_b - 2 * np.real(root)))


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine similarity of every row of a with every row of b: (n, m)."""
    unit_a, unit_b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    return unit_a @ unit_b.T


def two_way(similar: np.ndarray) -> float:
    """Share of pairs where a row is more similar to its own column than to another's; chance is 0.5."""
    count = len(similar)
    better = (np.diag(similar)[:, None] > similar).sum()
    return float(better / (count * (count - 1)))
