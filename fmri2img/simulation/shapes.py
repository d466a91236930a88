"""The kinds of object a simulated scene may hold, each drawn from a few polygons on the unit disc.

Coordinates: x to the right, y down, the object's centre at 0 and its radius 1. A part is painted in a tone of
the object's colour, so one colour word describes the whole object; its texture is on the parts in tone `body`.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

Tone = Literal["body", "dark", "light", "ink"]


@dataclass(frozen=True)
class Part:
    """One polygon of a shape: `points` (n, 2) on the unit disc, painted in `tone`."""

    points: np.ndarray
    tone: Tone = "body"


@dataclass(frozen=True)
class Shape:
    """A kind of object: parts from back to front, how far it may tilt (degrees), and what people call it."""

    parts: tuple[Part, ...]
    tilt: float
    words: tuple[str, ...]


def arc(
    radius: float, start: float = 0, stop: float = 360, *, x: float = 0, y: float = 0, flat: float = 1
) -> np.ndarray:
    """Points (n, 2) along an elliptic arc, degrees clockwise from the right; `flat` scales its height."""
    angle = np.radians(np.linspace(start, stop, max(8, int(abs(stop - start) / 12) + 1)))
    return np.stack([x + radius * np.cos(angle), y + radius * flat * np.sin(angle)], axis=1)


def polygon(*points: tuple[float, float]) -> np.ndarray:
    """The given corners as an (n, 2) array."""
    return np.array(points, dtype=float)


def box(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    """The four corners of an upright rectangle."""
    return polygon((left, top), (right, top), (right, bottom), (left, bottom))


def _star() -> np.ndarray:
    angle = np.radians(np.arange(10) * 36 - 90)
    radius = np.where(np.arange(10) % 2 == 0, 1.05, 0.48)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 40)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x, y - 2], axis=1) / 16


def _moon() -> np.ndarray:
    return np.concatenate([arc(1, 50, 310), arc(0.83, 293, 67, x=0.32)])


def _flower() -> tuple[Part, ...]:
    turns = np.radians(np.arange(6) * 60)
    petals = tuple(Part(arc(0.4, x=0.6 * float(np.cos(t)), y=0.6 * float(np.sin(t)))) for t in turns)
    return (*petals, Part(arc(0.36), "ink"))


SHAPES: dict[str, Shape] = {
    "ball": Shape((Part(arc(0.95)), Part(arc(0.27, y=-0.52, flat=0.65), "light")), 20, ("ball",)),
    "box": Shape(
        (
            Part(polygon((-0.9, -0.42), (-0.5, -0.85), (0.95, -0.85), (0.55, -0.42)), "light"),
            Part(polygon((0.55, -0.42), (0.95, -0.85), (0.95, 0.5), (0.55, 0.88)), "dark"),
            Part(box(-0.9, -0.42, 0.55, 0.88)),
        ),
        6,
        ("box", "crate"),
    ),
    "star": Shape((Part(_star()),), 25, ("star",)),
    "ring": Shape((Part(np.concatenate([arc(1), arc(0.48, 360, 0)])),), 20, ("ring", "hoop")),
    "heart": Shape((Part(_heart()),), 18, ("heart",)),
    "moon": Shape((Part(_moon()),), 25, ("moon", "crescent")),
    "flower": Shape(_flower(), 30, ("flower", "blossom")),
    "house": Shape(
        (
            Part(box(-0.72, -0.15, 0.72, 0.9)),
            Part(polygon((0, -1), (1.0, -0.1), (-1.0, -0.1)), "dark"),
            Part(box(-0.1, 0.28, 0.32, 0.9), "ink"),
            Part(box(-0.56, 0.08, -0.26, 0.4), "light"),
        ),
        5,
        ("house", "cottage"),
    ),
    "tree": Shape(
        (
            Part(box(-0.16, 0.4, 0.16, 1), "dark"),
            Part(polygon((0, -0.35), (0.85, 0.6), (-0.85, 0.6))),
            Part(polygon((0, -1.05), (0.65, 0), (-0.65, 0))),
        ),
        6,
        ("tree", "fir"),
    ),
    "fish": Shape(
        (
            Part(polygon((0.35, 0), (1.05, -0.55), (0.9, 0), (1.05, 0.55)), "dark"),
            Part(polygon((-0.4, -0.4), (0.1, -0.85), (0.25, -0.35)), "dark"),
            Part(arc(0.78, x=-0.2, flat=0.68)),
            Part(arc(0.17, x=-0.58, y=-0.12), "light"),
            Part(arc(0.1, x=-0.6, y=-0.12), "ink"),
        ),
        15,
        ("fish",),
    ),
    "bird": Shape(
        (
            Part(polygon((0.35, 0.1), (1.05, -0.3), (1.0, 0.25)), "dark"),
            Part(polygon((-0.8, -0.6), (-1.1, -0.4), (-0.75, -0.3)), "light"),
            Part(arc(0.66, x=-0.02, y=0.2, flat=0.72)),
            Part(arc(0.38, x=-0.52, y=-0.42)),
            Part(polygon((-0.25, 0.05), (0.62, 0.1), (0.2, 0.5), (-0.1, 0.4)), "dark"),
            Part(arc(0.1, x=-0.6, y=-0.5), "ink"),
            Part(polygon((-0.1, 0.62), (0.02, 0.62), (0.0, 1.0), (-0.12, 1.0)), "ink"),
            Part(polygon((0.16, 0.62), (0.28, 0.62), (0.3, 1.0), (0.18, 1.0)), "ink"),
        ),
        10,
        ("bird",),
    ),
    "face": Shape(
        (
            Part(arc(0.98)),
            Part(arc(0.13, x=-0.36, y=-0.24), "ink"),
            Part(arc(0.13, x=0.36, y=-0.24), "ink"),
            Part(np.concatenate([arc(0.58, 20, 160), arc(0.4, 160, 20, y=0.05)]), "ink"),
        ),
        10,
        ("face", "smiley"),
    ),
    "car": Shape(
        (
            Part(polygon((-0.62, -0.05), (-0.35, -0.6), (0.4, -0.6), (0.68, -0.05)), "dark"),
            Part(polygon((-0.45, -0.08), (-0.26, -0.46), (-0.02, -0.46), (-0.02, -0.08)), "light"),
            Part(polygon((0.1, -0.08), (0.1, -0.46), (0.32, -0.46), (0.5, -0.08)), "light"),
            Part(
                polygon((-1.05, 0.5), (-1.05, 0.1), (-0.9, -0.08), (0.85, -0.08), (1.05, 0.12), (1.05, 0.5))
            ),
            Part(arc(0.27, x=-0.56, y=0.5), "ink"),
            Part(arc(0.27, x=0.56, y=0.5), "ink"),
            Part(arc(0.11, x=-0.56, y=0.5), "light"),
            Part(arc(0.11, x=0.56, y=0.5), "light"),
        ),
        6,
        ("car",),
    ),
    "boat": Shape(
        (
            Part(box(-0.05, -1, 0.05, 0.4), "ink"),
            Part(polygon((0.12, -0.95), (0.9, 0.25), (0.12, 0.25))),
            Part(polygon((-0.12, -0.75), (-0.75, 0.25), (-0.12, 0.25)), "light"),
            Part(polygon((-1.05, 0.38), (1.05, 0.38), (0.68, 0.9), (-0.68, 0.9)), "dark"),
        ),
        8,
        ("boat", "sailboat"),
    ),
    "mushroom": Shape(
        (
            Part(polygon((-0.28, 0), (0.28, 0), (0.4, 0.95), (-0.4, 0.95)), "light"),
            Part(np.concatenate([arc(1, 180, 360, y=0.12, flat=1.05), arc(1, 0, 180, y=0.12, flat=0.18)])),
        ),
        10,
        ("mushroom", "toadstool"),
    ),
    "cup": Shape(
        (
            Part(np.concatenate([arc(0.45, -90, 90, x=0.5), arc(0.24, 90, -90, x=0.5)]), "dark"),
            Part(polygon((-0.85, -0.68), (0.6, -0.68), (0.42, 0.9), (-0.67, 0.9))),
            Part(arc(0.725, x=-0.125, y=-0.68, flat=0.25), "light"),
            Part(arc(0.55, x=-0.125, y=-0.66, flat=0.2), "ink"),
        ),
        8,
        ("cup", "mug"),
    ),
}

KINDS: tuple[str, ...] = tuple(SHAPES)
