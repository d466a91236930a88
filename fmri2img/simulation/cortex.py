"""A simulated visual cortex: what each voxel of a subject answers to pictures, and how noisy its trials are.

Early voxels (V1 to V4) read contrast energy through a receptive field (`energy`), higher ones mix tuned units
(`population`). A trial is `amplitude * (gain * (sqrt(c) * signal + sqrt(1 - c) * noise) + drift)` with signal
and noise of variance 1, so that `c` is the voxel's noise ceiling: the share of a single trial's variance that
the picture explains (Allen et al. 2022, whose percentages are 100 times ours). Drift is not counted in it.
"""

import zlib
from dataclasses import dataclass

import numpy as np

from fmri2img.simulation.energy import (
    BLOB_CHANNELS,
    CHANNELS,
    GABOR_CHANNELS,
    GRID,
    ORIENTATIONS,
    WAVELENGTHS,
)
from fmri2img.simulation.reference import Features, Reference, field_weights

BRAIN_STREAM, NOISE_STREAM, DRIFT_STREAM = 4, 5, 6
GLOBAL_NOISE, LOCAL_NOISE = 2, 2
"""Noise components of a trial shared by the whole cortex, and by each ROI."""


@dataclass(frozen=True)
class EarlyArea:
    """Receptive field size (degrees) is `size + slope * eccentricity`; `colour` the opponent share."""

    size: float
    slope: float
    colour: float
    exponent: float


EARLY: dict[str, EarlyArea] = {
    "V1": EarlyArea(0.40, 0.10, 0.30, 0.50),
    "V2": EarlyArea(0.50, 0.16, 0.35, 0.45),
    "V3": EarlyArea(0.65, 0.24, 0.35, 0.40),
    "V4": EarlyArea(0.90, 0.36, 0.55, 0.35),
}
SHARES: dict[str, float] = {
    "V1": 0.15, "V2": 0.12, "V3": 0.10, "V4": 0.08, "LOC": 0.18, "PPA": 0.12, "FFA": 0.08, "ventral": 0.17,
}  # fmt: skip
"""Share of a subject's voxels in each ROI, before the subject's own variation."""
CEILINGS: dict[str, tuple[float, float]] = {
    "V1": (1.9, 3.2), "V2": (1.7, 3.4), "V3": (1.6, 3.6), "V4": (1.4, 3.8),
    "LOC": (1.3, 3.8), "PPA": (1.3, 3.8), "FFA": (1.2, 4.0), "ventral": (1.2, 3.8),
}  # fmt: skip
"""Beta parameters of the noise ceilings of an ROI, as shares of `HIGHEST_CEILING`."""
HIGHEST_CEILING = 0.55


class Cortex:
    """The visual cortex of one subject, a pure function of seed, subject id and number of voxels.

    Attributes:
        roi: area of each voxel (voxels,) <U16, in the order of `SHARES`.
        noise_ceiling: signal variance over all variance of a single trial (voxels,) float32.
        ncsnr: standard deviation of signal over that of noise (voxels,) float32.
        rf_x, rf_y, rf_size: receptive field centre (x right, y down, 0 the middle of the picture) and standard
            deviation, in degrees (voxels,) float32; NaN in higher areas.
        amplitude: standard deviation of a trial without drift, in per cent signal change (voxels,) float32.
    """

    def __init__(self, shared: Reference, subject: str, voxels: int, *, noise_scale: float = 1.0) -> None:
        self._shared = shared
        self._key = zlib.crc32(subject.encode())
        rng = np.random.default_rng([BRAIN_STREAM, shared.seed, self._key])
        counts = _voxel_counts(rng, voxels)
        self.roi = np.repeat(np.array(list(counts), dtype="<U16"), list(counts.values()))
        self._draw_early(rng, counts)
        self._mixing = {
            name: _mixing_weights(rng, a.shape[1], counts[name]) for name, a in shared.features.active.items()
        }
        quiet = HIGHEST_CEILING * np.concatenate([rng.beta(*CEILINGS[n], size=c) for n, c in counts.items()])
        ncsnr = np.sqrt(np.maximum(quiet, 1e-3) / (1 - quiet)) / noise_scale
        self.ncsnr = ncsnr.astype(np.float32)
        self.noise_ceiling = (ncsnr**2 / (1 + ncsnr**2)).astype(np.float32)
        self.amplitude = np.exp(rng.normal(np.log(1.5), 0.35, size=voxels)).astype(np.float32)
        self._loadings = _noise_loadings(rng, list(counts.values()))
        self._own_noise = np.sqrt(1 - (self._loadings**2).sum(axis=0))
        raw = self._raw_signal(shared.features)
        self._mean, self._deviation = raw.mean(axis=0), raw.std(axis=0)

    def _draw_early(self, rng: np.random.Generator, counts: dict[str, int]) -> None:
        total = len(self.roi)
        self.rf_x, self.rf_y, self.rf_size = (np.full(total, np.nan, dtype=np.float32) for _ in range(3))
        fields, channels, exponents = [], [], []
        start = 0
        for name, area in EARLY.items():
            n = counts[name]
            x, y, size = _receptive_fields(rng, area, n)
            part = slice(start, start + n)
            self.rf_x[part], self.rf_y[part], self.rf_size[part] = x, y, size
            fields.append(field_weights(x, y, size))
            channels.append(_channel_weights(rng, area, np.hypot(x, y)))
            exponents.append(np.full(n, area.exponent))
            start += n
        self._fields = np.concatenate(fields).T.astype(np.float32)
        self._channels = np.concatenate(channels).T.astype(np.float32)
        self._exponents = np.concatenate(exponents).astype(np.float32)

    def _raw_signal(self, features: Features) -> np.ndarray:
        n = len(features.maps)
        early = np.empty((n, self._fields.shape[1]), dtype=np.float32)
        for i in range(0, n, 64):
            maps = features.maps[i : i + 64]
            seen = (maps.reshape(-1, GRID * GRID) @ self._fields).reshape(len(maps), CHANNELS, -1)
            early[i : i + 64] = np.einsum("ncv,cv->nv", seen, self._channels)
        parts = [(early + 0.05) ** self._exponents]
        for name, (weights, threshold) in self._mixing.items():
            parts.append(np.logaddexp(0, features.active[name] @ weights - threshold))
        return np.concatenate(parts, axis=1)

    def signal(self, features: Features) -> np.ndarray:
        """Noise-free answers to pictures, float32 (n, voxels): mean 0, variance 1 over reference pictures."""
        return ((self._raw_signal(features) - self._mean) / self._deviation).astype(np.float32)

    def noise(self, session: int, trial: int) -> np.ndarray:
        """The noise of one trial, float32 (voxels,), of variance 1; shared components correlate it."""
        rng = np.random.default_rng([NOISE_STREAM, self._shared.seed, self._key, session, trial])
        shared, own = len(self._loadings), len(self.roi)
        draw = rng.standard_normal(shared + own, dtype=np.float32)
        return draw[:shared] @ self._loadings + self._own_noise * draw[shared:]

    def measure(self, signal: np.ndarray, session: int, *, drift: float = 1.0) -> np.ndarray:
        """Trials of a session in per cent signal change, float32 (trials, voxels), from signals in order.

        Gain and offset of every voxel change from session to session, and a slow trend runs through each, by
        an amount that `drift` scales.
        """
        trials, voxels = signal.shape
        noise = np.stack([self.noise(session, trial) for trial in range(trials)])
        mixed = np.sqrt(self.noise_ceiling) * signal + np.sqrt(1 - self.noise_ceiling) * noise
        rng = np.random.default_rng([DRIFT_STREAM, self._shared.seed, self._key, session])
        gain = np.exp(drift * rng.normal(0, 0.1, size=voxels))
        offset = drift * (rng.normal(0, 0.4, size=voxels) + rng.normal(0, 0.15))
        time = np.linspace(-1, 1, trials)[:, None]
        slow = time * rng.normal(0, 0.15, size=voxels) + np.cos(np.pi * time) * rng.normal(
            0, 0.1, size=voxels
        )
        return (self.amplitude * (gain * mixed + offset + drift * slow)).astype(np.float32)

    def voxel_table(self) -> dict[str, np.ndarray]:
        """Per-voxel arrays (voxels,): roi, noise_ceiling, ncsnr, rf_x, rf_y, rf_size, amplitude."""
        names = ("roi", "noise_ceiling", "ncsnr", "rf_x", "rf_y", "rf_size", "amplitude")
        return {name: getattr(self, name) for name in names}


def _voxel_counts(rng: np.random.Generator, voxels: int) -> dict[str, int]:
    shares = np.array(list(SHARES.values())) * np.exp(rng.normal(0, 0.1, size=len(SHARES)))
    bounds = np.round(np.cumsum(shares) / shares.sum() * voxels).astype(int)
    return dict(zip(SHARES, np.diff(bounds, prepend=0).tolist(), strict=True))


def _receptive_fields(
    rng: np.random.Generator, area: EarlyArea, n: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centres crowd near fixation, as cortical magnification has it (E2 of 1 degree)."""
    eccentricity = 5.5 ** rng.uniform(0, 1, size=n) - 1 + rng.uniform(0, 0.3, size=n)
    angle = rng.uniform(0, 2 * np.pi, size=n)
    size = (area.size + area.slope * eccentricity) * np.exp(rng.normal(0, 0.15, size=n))
    return eccentricity * np.cos(angle), eccentricity * np.sin(angle), size


def _channel_weights(rng: np.random.Generator, area: EarlyArea, eccentricity: np.ndarray) -> np.ndarray:
    """How much a voxel takes of each map: (n, CHANNELS), each row summing to 1; coarser with eccentricity."""
    n = len(eccentricity)
    favourite = np.log2(5.0 + 1.5 * eccentricity + 4 * area.slope) + rng.normal(0, 0.4, size=n)
    scale = np.exp(-((np.log2(WAVELENGTHS) - favourite[:, None]) ** 2) / (2 * 0.7**2))
    angles = np.pi * np.arange(ORIENTATIONS) / ORIENTATIONS
    sharpness = rng.uniform(0.3, 2.0, size=(n, 1))
    tuning = np.exp(sharpness * (np.cos(2 * (angles - rng.uniform(0, np.pi, size=(n, 1)))) - 1))
    gabor = (scale[:, :, None] * tuning[:, None, :]).reshape(n, GABOR_CHANNELS)
    blob = rng.gamma(0.5, size=(n, BLOB_CHANNELS))
    share = np.clip(area.colour + rng.normal(0, 0.15, size=(n, 1)), 0.05, 0.95)
    return np.concatenate(
        [
            (1 - share) * gabor / gabor.sum(axis=1, keepdims=True),
            share * blob / blob.sum(axis=1, keepdims=True),
        ],
        axis=1,
    )


def _mixing_weights(rng: np.random.Generator, dimensions: int, voxels: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights (dimensions, voxels) of unit length, and each voxel's threshold."""
    weights = rng.normal(size=(dimensions, voxels))
    weights /= np.linalg.norm(weights, axis=0)
    return weights.astype(np.float32), rng.normal(0, 0.4, size=voxels).astype(np.float32)


def _noise_loadings(rng: np.random.Generator, counts: list[int]) -> np.ndarray:
    """Loadings (components, voxels) of shared noise, a fifth of the whole: the cortex's, each ROI's."""
    loadings = np.zeros((GLOBAL_NOISE + LOCAL_NOISE * len(counts), sum(counts)))
    loadings[:GLOBAL_NOISE] = rng.normal(0.4, 0.7, size=(GLOBAL_NOISE, sum(counts)))
    start = 0
    for i, count in enumerate(counts):
        row = GLOBAL_NOISE + LOCAL_NOISE * i
        loadings[row : row + LOCAL_NOISE, start : start + count] = rng.normal(
            0.3, 1, size=(LOCAL_NOISE, count)
        )
        start += count
    share = rng.uniform(0.08, 0.32, size=sum(counts))
    return (loadings * np.sqrt(share) / np.linalg.norm(loadings, axis=0)).astype(np.float32)
