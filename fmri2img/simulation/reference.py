"""What all simulated subjects share: the activity of the cortex before voxels sample it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from fmri2img.simulation.energy import GRID, contrast_maps
from fmri2img.simulation.population import Populations
from fmri2img.simulation.records import Scene
from fmri2img.simulation.scenes import draw_scene, render

DIMENSION_STREAM = 9
PICTURE_DEGREES = 8.4
"""Width of a picture in degrees of visual angle, as in NSD."""
REFERENCE_PICTURES = 1024
REFERENCE_IDS = 1 << 40
"""Pictures from this id on only calibrate; no subject sees them."""
DIMENSIONS: dict[str, int] = {"LOC": 9, "PPA": 7, "FFA": 6, "ventral": 10}
"""Along which a higher area is active."""
FOLD = 1.0
"""Radians by which one standard deviation of a mixture of units moves the phase of its dimension's response."""
SURROUND, SEMI_SATURATION = 1.2, 0.3
"""Of divisive normalisation: standard deviation in degrees, and a constant in units of mean contrast."""


@dataclass(frozen=True)
class Features:
    """What the cortex sees of n pictures.

    Attributes:
        maps: normalised contrast (n, CHANNELS, GRID * GRID), float32.
        active: by higher area, its activity along its dimensions (n, dimensions), about -1.4 to 1.4.
    """

    maps: np.ndarray
    active: dict[str, np.ndarray]


class Reference:
    """What all subjects of a simulation share: tuned populations, their dimensions, and the usual size of maps.

    A higher area is active along few dimensions, the same in every brain (Haxby et al. 2011 find some 35 in
    ventral temporal cortex). Each is a random mixture of the area's tuned units whose response rises and falls
    again, so much of what is seen can be read from the dimensions, but not as a weighted sum of them.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._populations = Populations(seed)
        scenes = [draw_scene(seed, REFERENCE_IDS + i) for i in range(REFERENCE_PICTURES)]
        maps = contrast_maps(np.stack([render(scene) for scene in scenes]))
        self._map_means = maps.mean(axis=(0, 2))[:, None]
        across, down = np.meshgrid(_places(), _places())
        self._near = field_weights(across, down, np.array(SURROUND))
        answers = self._populations.answers(scenes)
        rng = np.random.default_rng([DIMENSION_STREAM, seed])
        self._dimensions = {name: _random_mixtures(rng, answers[name], DIMENSIONS[name]) for name in answers}
        self.features = self._features(maps, answers)

    def see(self, scenes: Sequence[Scene]) -> Features:
        """The features of scenes."""
        maps = contrast_maps(np.stack([render(scene) for scene in scenes]))
        return self._features(maps, self._populations.answers(scenes))

    def _features(self, maps: np.ndarray, answers: dict[str, np.ndarray]) -> Features:
        active = {
            name: np.sqrt(2) * np.sin(FOLD * ((answers[name] - mean) @ mix) + _phases(mix.shape[1]))
            for name, (mean, mix) in self._dimensions.items()
        }
        return Features(self._normalise(maps), active)

    def _normalise(self, maps: np.ndarray) -> np.ndarray:
        """Divisive normalisation (Heeger 1992): every map over the contrast of all maps in the surround."""
        relative = maps / self._map_means
        surround = relative.mean(axis=1) @ self._near.T
        return (relative / (SEMI_SATURATION + surround[:, None])).astype(np.float32)


@lru_cache(maxsize=2)
def reference(seed: int) -> Reference:
    """The reference of a simulation's seed, made once per process (a few seconds)."""
    return Reference(seed)


def _places() -> np.ndarray:
    return ((np.arange(GRID) + 0.5) / GRID - 0.5) * PICTURE_DEGREES


def field_weights(x: np.ndarray, y: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Gaussian receptive fields on the grid of the maps: (n, GRID * GRID), each summing to 1."""
    down = np.exp(-((_places() - y.reshape(-1, 1)) ** 2) / (2 * size.reshape(-1, 1) ** 2))
    across = np.exp(-((_places() - x.reshape(-1, 1)) ** 2) / (2 * size.reshape(-1, 1) ** 2))
    weights = (down[:, :, None] * across[:, None, :]).reshape(x.size, -1)
    return weights / weights.sum(axis=1, keepdims=True)


def _phases(dimensions: int) -> np.ndarray:
    return np.linspace(0, np.pi, dimensions, endpoint=False, dtype=np.float32)


def _random_mixtures(
    rng: np.random.Generator, answers: np.ndarray, dimensions: int
) -> tuple[np.ndarray, np.ndarray]:
    """Mean (units,) and projection (units, dimensions) to uncorrelated random mixtures of variance 1."""
    mean, deviation = answers.mean(axis=0), answers.std(axis=0)
    mix = rng.normal(size=(answers.shape[1], dimensions)) / deviation[:, None]
    activity = (answers - mean) @ mix
    values, vectors = np.linalg.eigh(np.cov(activity.T))
    return mean, (mix @ (vectors / np.sqrt(values)) @ vectors.T).astype(np.float32)
