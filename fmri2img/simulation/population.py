"""What the simulated higher areas make of a scene: populations of tuned units, the same in every brain.

A unit answers to things near its favourite kind, colour, size, place and texture, multiplied, summed over the
objects of the scene by how much of the picture they take up, and compressed; some answer to the place instead,
and to where the light comes from. Kinds live in a small space in which
some are alike, so tuning is graded. A unit is not a label and no label is a unit; voxels mix many units, each
in its own way.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fmri2img.simulation.energy import OPPONENTS
from fmri2img.simulation.records import BACKGROUNDS, LIGHTS, TEXTURES, Scene
from fmri2img.simulation.shapes import KINDS

POPULATION_STREAM = 3
KIND_DIMENSIONS = 7
MAX_OBJECTS = 4
CATEGORIES: tuple[tuple[str, ...], ...] = (
    ("ball", "ring", "moon", "face"),
    ("box", "cup", "car", "boat"),
    ("flower", "tree", "mushroom"),
    ("fish", "bird", "face"),
    ("house", "tree", "boat"),
    ("star", "heart", "moon"),
)
"""Kinds that are alike: round, made by people, plants, animals, of places, ornaments."""


@dataclass(frozen=True)
class Area:
    """What the units of a higher area care about.

    Attributes:
        units: how many.
        favourites: kinds its units prefer; all of them when empty.
        colour, size, place, texture: share of a unit's answer that depends on them, 0 to 1.
        background: share of its units that answer to the background instead of to objects.
    """

    units: int
    favourites: tuple[str, ...] = ()
    colour: float = 0.5
    size: float = 0.5
    place: float = 0.5
    texture: float = 0.3
    background: float = 0.0


AREAS: dict[str, Area] = {
    "LOC": Area(96, colour=0.35, size=0.4, place=0.75, texture=0.3),
    "PPA": Area(80, favourites=("house", "tree"), colour=0.6, size=0.3, place=0.4, background=0.7),
    "FFA": Area(
        48, favourites=("face", "face", "fish", "bird"), colour=0.3, size=0.6, place=0.4, texture=0.1
    ),
    "ventral": Area(112, colour=0.85, size=0.3, place=0.3, texture=0.6, background=0.2),
}


@dataclass(frozen=True)
class Units:
    """The tuning of one area's units, arrays with the units first; a unit answers to objects or grounds."""

    area: Area
    kinds: np.ndarray
    backgrounds: np.ndarray
    colours: np.ndarray
    sizes: np.ndarray
    places: np.ndarray
    textures: np.ndarray
    lights: np.ndarray
    of_background: np.ndarray


class Populations:
    """The tuned units of all higher areas of a simulation; `answers` is their response to scenes."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng([POPULATION_STREAM, seed])
        self._kinds = _kind_space(rng)
        self._backgrounds = rng.normal(size=(len(BACKGROUNDS), 4))
        self._backgrounds /= np.linalg.norm(self._backgrounds, axis=1, keepdims=True)
        self._units = {name: self._draw_units(rng, area) for name, area in AREAS.items()}

    def _draw_units(self, rng: np.random.Generator, area: Area) -> Units:
        names = area.favourites or KINDS
        chosen = self._kinds[[KINDS.index(str(name)) for name in rng.choice(names, size=area.units)]]
        favourite = chosen + 0.35 * rng.normal(size=chosen.shape)
        favourite /= np.linalg.norm(favourite, axis=1, keepdims=True)
        ground = self._backgrounds[rng.integers(len(BACKGROUNDS), size=area.units)]
        ground = ground + 0.3 * rng.normal(size=ground.shape)
        ground /= np.linalg.norm(ground, axis=1, keepdims=True)
        return Units(
            area=area,
            kinds=np.exp(6 * (favourite @ self._kinds.T - 1)),
            backgrounds=np.exp(3 * (ground @ self._backgrounds.T - 1)),
            colours=_opponent(rng.uniform(0, 1, size=(area.units, 3))),
            sizes=rng.uniform(np.log(0.09), np.log(0.3), size=area.units),
            places=rng.uniform(0.15, 0.85, size=(area.units, 2)),
            textures=rng.uniform(0, 1, size=(area.units, len(TEXTURES))),
            lights=rng.uniform(0.5, 1, size=(area.units, len(LIGHTS))),
            of_background=rng.random(area.units) < area.background,
        )

    def answers(self, scenes: Sequence[Scene]) -> dict[str, np.ndarray]:
        """Responses of each area's units to n scenes: float32 (n, units) by area."""
        objects = _object_arrays(scenes)
        grounds = _background_arrays(scenes)
        return {
            name: np.where(
                units.of_background, _to_background(units, *grounds), _to_objects(units, *objects)
            ).astype(np.float32)
            for name, units in self._units.items()
        }


def _kind_space(rng: np.random.Generator) -> np.ndarray:
    """Unit vectors (kinds, KIND_DIMENSIONS): each kind's own direction plus those of its categories."""
    vectors = rng.normal(size=(len(KINDS), KIND_DIMENSIONS)) / np.sqrt(KIND_DIMENSIONS)
    for members in CATEGORIES:
        shared = rng.normal(size=KIND_DIMENSIONS) / np.sqrt(KIND_DIMENSIONS)
        for name in members:
            vectors[KINDS.index(name)] += 0.6 * shared
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _opponent(rgb: np.ndarray) -> np.ndarray:
    return rgb @ OPPONENTS.T.astype(float)


def _object_arrays(scenes: Sequence[Scene]) -> tuple[np.ndarray, ...]:
    """Kind (n, m), opponent colour (n, m, 3), log radius (n, m), place (n, m, 2), texture (n, m), weight (n, m).

    m is MAX_OBJECTS; the weight of an object that is not there is 0.
    """
    n = len(scenes)
    kind, texture = np.zeros((n, MAX_OBJECTS), dtype=int), np.zeros((n, MAX_OBJECTS), dtype=int)
    rgb, place = np.zeros((n, MAX_OBJECTS, 3)), np.zeros((n, MAX_OBJECTS, 2))
    radius, weight = np.ones((n, MAX_OBJECTS)), np.zeros((n, MAX_OBJECTS))
    for i, scene in enumerate(scenes):
        for j, thing in enumerate(scene.objects):
            kind[i, j], texture[i, j] = KINDS.index(thing.kind), TEXTURES.index(thing.texture)
            rgb[i, j] = thing.rgb
            place[i, j] = thing.x, thing.y
            radius[i, j] = thing.radius
            weight[i, j] = thing.radius
    weight /= weight.sum(axis=1, keepdims=True)
    return kind, _opponent(rgb / 255), np.log(radius), place, texture, weight


def _background_arrays(scenes: Sequence[Scene]) -> tuple[np.ndarray, ...]:
    """Kind (n,) and opponent colours (n, 2, 3) of the backgrounds, and side of the light (n,)."""
    kind = np.array([BACKGROUNDS.index(scene.background.kind) for scene in scenes])
    side = np.array([list(LIGHTS).index(scene.light.side) for scene in scenes])
    return kind, _opponent(np.array([scene.background.rgbs for scene in scenes]) / 255), side


def _blend(share: float, away: np.ndarray, width: float) -> np.ndarray:
    return 1 - share + share * np.exp(-away / (2 * width**2))


def _to_objects(
    units: Units,
    kind: np.ndarray,
    colour: np.ndarray,
    size: np.ndarray,
    place: np.ndarray,
    texture: np.ndarray,
    weight: np.ndarray,
) -> np.ndarray:
    area = units.area
    total = np.zeros((len(kind), len(units.sizes)))
    for j in range(MAX_OBJECTS):
        answer = units.kinds[:, kind[:, j]].T * weight[:, j, None]
        answer *= _blend(area.colour, ((colour[:, j, None] - units.colours) ** 2).sum(axis=2), 0.18)
        answer *= _blend(area.size, (size[:, j, None] - units.sizes) ** 2, 0.45)
        answer *= _blend(area.place, ((place[:, j, None] - units.places) ** 2).sum(axis=2), 0.17)
        answer *= 1 - area.texture * (1 - units.textures[:, texture[:, j]].T)
        total += answer
    return np.sqrt(total)


def _to_background(units: Units, kind: np.ndarray, colour: np.ndarray, light: np.ndarray) -> np.ndarray:
    answer = np.zeros((len(kind), len(units.sizes)))
    for side in range(2):
        answer += _blend(units.area.colour, ((colour[:, side, None] - units.colours) ** 2).sum(axis=2), 0.18)
    return np.sqrt(answer * units.backgrounds[:, kind].T * units.lights[:, light].T)
