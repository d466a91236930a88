"""What the simulated retina and V1 make of a picture: oriented energy and opponent-colour contrast on a grid.

The voxels of early areas read these maps through their receptive fields (energy model: Adelson and Bergen
1985; voxels as pools of energies: Kay et al. 2008). A map knows contrast, not light: a uniform picture of any
colour gives zeros.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import fft

GRID = 16
"""Maps are averaged to GRID x GRID positions."""
WAVELENGTHS: tuple[float, ...] = (5.0, 10.0, 20.0)
"""Of the Gabor filters, in pixels of a 64-pixel picture."""
ORIENTATIONS = 6
BLOB_SIZES: tuple[float, ...] = (2.5, 7.0)
"""Standard deviations (pixels) of the centres of opponent-contrast filters; a surround is 2.5 times as wide."""
OPPONENTS = np.array([[0.3, 0.59, 0.11], [0.7, -0.7, 0.0], [-0.35, -0.35, 0.7]], dtype=np.float32)
"""Light-dark, red-green and blue-yellow, from red, green and blue."""

GABOR_CHANNELS = len(WAVELENGTHS) * ORIENTATIONS
BLOB_CHANNELS = 2 * len(BLOB_SIZES) * len(OPPONENTS)
CHANNELS = GABOR_CHANNELS + BLOB_CHANNELS
"""Gabor energies (wavelength, orientation), then blobs (sign, size, opponent)."""


@dataclass(frozen=True)
class Bank:
    """Filters in the frequency domain: by wavelength `gabors` (orientations, y, x), `blobs` (sizes, y, x)."""

    window: np.ndarray
    gabors: tuple[np.ndarray, ...]
    blobs: np.ndarray


@lru_cache(maxsize=4)
def filter_bank(size: int) -> Bank:
    """The filters for pictures of `size` pixels; those of few frequencies are kept on a coarser grid."""
    ramp = np.minimum(np.arange(size) + 0.5, size - 0.5 - np.arange(size)) / 4
    edge = np.sin(np.pi / 2 * np.minimum(ramp, 1)) ** 2
    gabors = []
    for wavelength in WAVELENGTHS:
        side = size if wavelength < 8 else size // 2
        fy, fx = np.meshgrid(
            fft.fftfreq(side, 1 / side) / size, fft.fftfreq(side, 1 / side) / size, indexing="ij"
        )
        angles = np.pi * np.arange(ORIENTATIONS) / ORIENTATIONS
        centre = np.stack([np.cos(angles), np.sin(angles)]) / wavelength
        spread = 0.3 / wavelength
        away = (fx - centre[0][:, None, None]) ** 2 + (fy - centre[1][:, None, None]) ** 2
        gabors.append((np.exp(-away / (2 * spread**2)) * (side / size) ** 2).astype(np.float32))
    fy, fx = np.meshgrid(fft.fftfreq(size), fft.rfftfreq(size), indexing="ij")
    squared = (2 * np.pi) ** 2 * (fx**2 + fy**2)
    blobs = [np.exp(-squared * s**2 / 2) - np.exp(-squared * (2.5 * s) ** 2 / 2) for s in BLOB_SIZES]
    return Bank(np.outer(edge, edge).astype(np.float32), tuple(gabors), np.array(blobs, dtype=np.float32))


def contrast_maps(pictures: np.ndarray) -> np.ndarray:
    """Maps of pictures, uint8 (n, size, size, 3), as float32 (n, CHANNELS, GRID * GRID), all at least 0.

    Every picture is worked on alone, so its maps do not depend on which others came with it.
    """
    return np.stack([_maps_of_one(picture) for picture in pictures])


def _maps_of_one(picture: np.ndarray) -> np.ndarray:
    size = picture.shape[0]
    bank = filter_bank(size)
    light = (OPPONENTS @ (picture.reshape(-1, 3).T / np.float32(255))).reshape(3, size, size)
    light = (light - light.mean(axis=(1, 2), keepdims=True)) * bank.window
    spectrum = fft.fft2(light[0])
    energies = []
    for filters in bank.gabors:
        half = filters.shape[-1] // 2
        kept = np.r_[0:half, size - half : size]
        quadrature = fft.ifft2(spectrum[np.ix_(kept, kept)] * filters)
        energies.append(_pool(quadrature.real**2 + quadrature.imag**2))
    blobs = fft.irfft2(fft.rfft2(light) * bank.blobs[:, None], s=(size, size))
    signed = np.concatenate([np.maximum(blobs, 0), np.maximum(-blobs, 0)]).reshape(-1, size, size)
    return np.concatenate([*energies, _pool(signed)])


def _pool(maps: np.ndarray) -> np.ndarray:
    channels, side, _ = maps.shape
    step = side // GRID
    return maps.reshape(channels, GRID, step, GRID, step).mean(axis=(2, 4)).reshape(channels, -1)
