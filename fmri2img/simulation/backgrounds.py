"""Painting what is behind the objects of a simulated scene: walls, rooms, and places under a sky.

Outlines and gradients are computed along one axis each and then spread over the picture by sums and products,
so painting is quick and every machine makes the same picture.
"""

from collections.abc import Callable

import numpy as np

from fmri2img.simulation.objects import PaintingLight
from fmri2img.simulation.records import GROUND_LIGHT, Background, Colour

Painter = Callable[[Background, PaintingLight, int], np.ndarray]
_WHITE = np.full((3, 1, 1), 255, dtype=np.float32)
_GLOW = {"day": (236, 244, 250), "sunset": (255, 226, 140), "night": (84, 90, 146)}
"""Colour of the sky at the horizon."""


def paint_background(background: Background, light: PaintingLight, width: int) -> np.ndarray:
    """A canvas with the background, the mean of 2 x 2 finer pixels: float32 (3, width, width), 0 to 255."""
    fine = PAINTERS[background.kind](background, light, 2 * width).astype(np.float32, copy=False)
    rows = fine[:, ::2], fine[:, 1::2]
    return (rows[0][..., ::2] + rows[0][..., 1::2] + rows[1][..., ::2] + rows[1][..., 1::2]) / np.float32(4)


def _axes(width: int) -> tuple[np.ndarray, np.ndarray]:
    along = (np.arange(width) + 0.5) / width
    return along[None, :], along[:, None]


def _rgbs(background: Background) -> tuple[np.ndarray, np.ndarray]:
    first, second = background.rgbs
    return _colour(first), _colour(second)


def _colour(rgb: Colour) -> np.ndarray:
    """A colour as float32 (3, 1, 1), to be spread over a picture."""
    return np.array(rgb, dtype=np.float32)[:, None, None]


def _mix(first: np.ndarray, second: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Colours (3, ...) between two, by shares (...) from 0 to 1."""
    return first + share.astype(np.float32) * (second - first)


def _lit(colours: np.ndarray, light: PaintingLight, width: int) -> np.ndarray:
    """A wall lit from one side."""
    x, y = _axes(width)
    fall = 1 + 0.26 * light.strength * (light.x * (x - 0.5) + light.y * (y - 0.5))
    return colours * fall.astype(np.float32)


def _wall(background: Background, light: PaintingLight, width: int) -> np.ndarray:
    first, second = _rgbs(background)
    x, y = _axes(width)
    turn = np.radians(background.angle)
    along = x * np.cos(turn) + y * np.sin(turn)
    if background.kind == "fading":
        share = (along - along.min()) / (along.max() - along.min())
    elif background.kind == "striped":
        share = np.floor(along / background.period * 2) % 2
    elif background.kind == "chequered":
        share = (np.floor(x / background.period) + np.floor(y / background.period)) % 2
    else:
        share = np.zeros((width, width))
    return _lit(_mix(first, second, share), light, width)


def _room(background: Background, light: PaintingLight, width: int) -> np.ndarray:
    """A wall with a window on the side of the light, a skirting board, and floorboards that run to the back."""
    wall, floor = _rgbs(background)
    x, y = _axes(width)
    ground = y > background.horizon
    depth = np.maximum(y - background.horizon, 0.02) + 0.25
    boards = np.floor((x - 0.5) / depth * 2.2 + 0.5) % 2 * 0.12
    canvas = np.where(ground, _mix(floor, floor * 0.4, boards), wall)
    canvas = _lit(canvas, light, width)
    skirting = (y > background.horizon - 0.035) & ~ground
    canvas = np.where(skirting, wall * 0.45 + _WHITE * 0.45, canvas)
    middle = 0.5 + 0.32 * (light.x or (0.9 if background.profile[0] > 0.5 else -0.9))
    across, down = np.abs(x - middle), np.abs(y - 0.22)
    frame = (across < 0.145) & (down < 0.165)
    pane = (across < 0.115) & (down < 0.135) & (across > 0.016) & (down > 0.016)
    canvas = np.where(frame, _WHITE * 0.94, canvas)
    sky = _colour((168, 212, 244))
    return np.where(pane, sky, canvas)


def _sky(background: Background, light: PaintingLight, width: int) -> np.ndarray:
    """A sky that grows lighter towards the horizon, and at dusk towards the light."""
    sky, _ = _rgbs(background)
    x, y = _axes(width)
    low = np.clip(y / background.horizon, 0, 1)
    share = low * low * (0.75 + 0.3 * light.x * (x - 0.5) * 2)
    return _mix(sky, _colour(_GLOW[background.time]), np.clip(share, 0, 1))


def _ground_colour(background: Background) -> np.ndarray:
    dim = GROUND_LIGHT[background.time]
    haze = _colour(_GLOW[background.time])
    ground = _rgbs(background)[1] * dim
    return ground if background.time == "day" else ground + 0.12 * (haze - ground)


def _near(background: Background, y: np.ndarray) -> np.ndarray:
    """0 at the horizon to 1 at the lower edge."""
    return np.clip((y - background.horizon) / (1 - background.horizon), 0, 1)


def _field(background: Background, light: PaintingLight, width: int) -> np.ndarray:
    """Flat ground in mown strips that widen towards the viewer."""
    x, y = _axes(width)
    ground = _ground_colour(background)
    near = _near(background, y)
    strips = np.floor((x - 0.2 - 0.6 * background.profile[0]) / (near + 0.3) * 3.5) % 2
    colours = _mix(ground * 1.08, ground * 0.78, near * 0.6 + strips * 0.25)
    return np.where((y > background.horizon), colours, _sky(background, light, width))


def _hills(background: Background, light: PaintingLight, width: int) -> np.ndarray:
    """Two rows of round hills, the far one paler."""
    x, y = _axes(width)
    p = background.profile
    ground, canvas = _ground_colour(background), _sky(background, light, width)
    far = background.horizon - 0.05 - 0.09 * np.sin(2 * np.pi * (x * (0.9 + 0.6 * p[0]) + p[1]))
    close = background.horizon + 0.14 + 0.08 * np.sin(2 * np.pi * (x * (0.8 + 0.6 * p[2]) + p[3]))
    haze = _colour(_GLOW[background.time])
    canvas = np.where((y > far), ground * 0.68 + haze * 0.22, canvas)
    slope = np.clip((y - close) * 2.2, 0, 1)
    return np.where((y > close), _mix(ground * 1.05, ground * 0.72, slope), canvas)


def _mountains(background: Background, light: PaintingLight, width: int) -> np.ndarray:
    """Three peaks with snow on them, lit on one side, above dark green land."""
    x, y = _axes(width)
    canvas, rock = _sky(background, light, width), _ground_colour(background)
    p, dim = background.profile, GROUND_LIGHT[background.time]
    base = background.horizon + 0.1
    for i, place in enumerate((0.12, 0.88, 0.5)):
        middle, top = place + 0.2 * (p[i] - 0.5), 0.14 + 0.2 * p[i + 3]
        slope = 1.25 + 0.5 * p[i + 5 if i < 2 else 7]
        height = top + np.abs(x - middle) * slope
        bright = (x - middle) * (light.x or -0.6) > 0
        face = np.where(bright, rock * 1.08, rock * 0.72)
        zigzag = np.abs((x - middle) * 9 % 1 - 0.5) * 0.09
        snow = y < top + 0.1 + zigzag
        white = _WHITE * (0.3 + 0.66 * dim) * np.where(bright, 1, 0.86).astype(np.float32)
        face = np.where(snow, white, face)
        canvas = np.where((y > height), face, canvas)
    land = _colour((74, 122, 74)) * dim
    fade = np.clip((y - base) / (1 - base), 0, 1)
    return np.where((y > base), _mix(land * 1.1, land * 0.75, fade), canvas)


def _sea(background: Background, light: PaintingLight, width: int) -> np.ndarray:
    """Water with bands of waves, and a strip of beach in front."""
    x, y = _axes(width)
    p, dim = background.profile, GROUND_LIGHT[background.time]
    water, glow = _ground_colour(background), _colour(_GLOW[background.time])
    near = _near(background, y)
    crest = 0.012 * np.sin(2 * np.pi * (2 * x + p[0]))
    waves = (np.floor(np.sqrt(np.maximum(near + crest * 2, 0)) * 7) % 2) * 0.16
    canvas = np.where(
        (y > background.horizon),
        _mix(_mix(water, glow, (1 - near) ** 2 * 0.35), _WHITE * (0.35 + 0.6 * dim), waves),
        _sky(background, light, width),
    )
    shore = 0.86 + 0.03 * np.sin(2 * np.pi * (x * 0.8 + p[1]))
    sand = _colour((232, 206, 148)) * dim
    canvas = np.where((y > shore - 0.02), _WHITE * (0.25 + 0.7 * dim), canvas)
    return np.where((y > shore), sand, canvas)


def _town(background: Background, light: PaintingLight, width: int) -> np.ndarray:
    """A row of buildings with windows, lit after dark, behind a street."""
    x, y = _axes(width)
    p = np.array(background.profile)
    canvas, walls = _sky(background, light, width), _ground_colour(background)
    base = background.horizon + 0.12
    which = np.minimum((x * 6).astype(int), 5)
    top = 0.16 + 0.3 * p[which]
    tone = (0.72 + 0.4 * ((p[which] * 7) % 1)).astype(np.float32)
    building = (y > top) & (y < base)
    within, floor = x * 6 % 1, (y - top) * 8 % 1
    window = building & (np.abs(within - 0.5) < 0.24) & (np.abs(floor - 0.6) < 0.24) & (y < base - 0.04)
    pane = walls * 0.5 if background.time == "day" else _colour((250, 214, 120))
    lit = window if background.time == "day" else window & ((which + np.floor((y - top) * 8)) % 3 != 0)
    canvas = np.where(building, walls * tone, canvas)
    canvas = np.where(lit, pane, canvas)
    street = _colour((112, 112, 118)) * GROUND_LIGHT[background.time]
    kerb = (y > base + 0.05) & (y < base + 0.08)
    canvas = np.where((y >= base), street * 1.25, canvas)
    canvas = np.where((y > base + 0.05), street, canvas)
    return np.where(kerb, street * 1.6, canvas)


PAINTERS: dict[str, Painter] = {
    "plain": _wall,
    "fading": _wall,
    "striped": _wall,
    "chequered": _wall,
    "room": _room,
    "field": _field,
    "hills": _hills,
    "mountains": _mountains,
    "sea": _sea,
    "town": _town,
}
