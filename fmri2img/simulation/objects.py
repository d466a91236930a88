"""Painting an object of a simulated scene: its parts, texture, shading and the soft shadow it casts.

Colours of parts and textures are looked up in a small palette by the index a fine pixel was drawn with, then
shaded as a dome lit from one side. Only sums and products touch single pixels, so every machine makes the
same picture.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from fmri2img.simulation.records import LIGHTS, STRENGTHS, Colour, Light, SceneObject
from fmri2img.simulation.shapes import SHAPES

OVERSAMPLING = 3
OUTLINE, BODY, DARK, LIGHT, INK, PATTERN = range(1, 7)
_INDEX = {"body": BODY, "dark": DARK, "light": LIGHT, "ink": INK}
_OPAQUE = [0] + [255] * 255
_TINTS = {"day": (1.0, 1.0, 1.0), "sunset": (1.05, 0.93, 0.84), "night": (0.78, 0.82, 0.97)}
OUTLINE_WIDTH = 0.02
"""Of an object's dark edge, as a share of the picture's width."""
FINEST_PATTERN = 0.085
"""Shortest period of a texture as a share of the picture's width, so that it survives 64 pixels."""


@dataclass(frozen=True)
class PaintingLight:
    """Light as painting uses it: where it comes from (unit vector), strength 0 to 1, and tint of objects."""

    x: float
    y: float
    strength: float
    tint: np.ndarray


def painting_light(light: Light, time: str) -> PaintingLight:
    """The light of a scene at a time of day."""
    x, y = LIGHTS[light.side]
    return PaintingLight(x, y, STRENGTHS[light.strength], np.array(_TINTS[time], dtype=np.float32))


def paint_object(canvas: np.ndarray, thing: SceneObject, light: PaintingLight) -> None:
    """Paint one object, and the shadow it casts, over a canvas: float32 (3, width, width), 0 to 255.

    The object is drawn with 3 x 3 fine pixels to one of the canvas, whose mean is laid over it.
    """
    width = canvas.shape[1]
    drawn = draw_parts(thing, width * OVERSAMPLING)
    _cast_shadow(canvas, drawn, thing, light)
    reach = thing.radius * 1.15 + OUTLINE_WIDTH
    rows, columns = (_between(place, reach, width) for place in (thing.y, thing.x))
    seen = np.asarray(drawn)[_finer(rows), _finer(columns)].copy()
    u, v = _offsets(columns, thing.x, width)[None, :], _offsets(rows, thing.y, width)[:, None]
    u, v = u / np.float32(thing.radius), v / np.float32(thing.radius)
    if thing.texture != "plain":
        seen[(seen == BODY) & _pattern(thing, u, v)] = PATTERN
    across, down = 0.26 * light.strength * light.x * u, 0.26 * light.strength * light.y * v
    dome = 0.1 * light.strength
    shade = (1.03 + across - dome * u * u) + (down - dome * v * v)
    colours = np.take(_palette(thing.rgb, light.tint), seen, axis=1)
    colours[:3] *= shade.astype(np.float32)
    fine = (
        colours[:, i::OVERSAMPLING, j::OVERSAMPLING] for i in range(OVERSAMPLING) for j in range(OVERSAMPLING)
    )
    mean = sum(fine, start=np.zeros((), dtype=np.float32)) / np.float32(OVERSAMPLING**2)
    region = canvas[:, rows, columns]
    region *= 1 - mean[3]
    region += np.minimum(mean[:3], 255)


def _between(place: float, reach: float, width: int) -> slice:
    """The pixels of the canvas within reach of a place."""
    first, last = int((place - reach) * width), int((place + reach) * width) + 1
    return slice(max(first, 0), min(last, width))


def _finer(pixels: slice) -> slice:
    return slice(pixels.start * OVERSAMPLING, pixels.stop * OVERSAMPLING)


def _offsets(pixels: slice, place: float, width: int) -> np.ndarray:
    """Of fine pixels from a place, as shares of the picture's width."""
    fine = np.arange(pixels.start * OVERSAMPLING, pixels.stop * OVERSAMPLING, dtype=np.float32)
    return (fine + np.float32(0.5)) / np.float32(width * OVERSAMPLING) - np.float32(place)


def draw_parts(thing: SceneObject, width: int) -> Image.Image:
    """The parts of an object as palette indices, 0 where it is not, at fine pixels."""
    image = Image.new("L", (width, width), 0)
    draw = ImageDraw.Draw(image)
    turn = np.radians(thing.tilt)
    cos, sin = float(np.cos(turn)), float(np.sin(turn))
    place = np.array([thing.x, thing.y])
    flip = -1.0 if thing.mirrored else 1.0

    def paint(points: np.ndarray, index: int) -> None:
        x, y = points[:, 0] * flip, points[:, 1]
        placed = np.stack([x * cos - y * sin, x * sin + y * cos], axis=1) * thing.radius + place
        draw.polygon((placed * width).ravel().tolist(), fill=index)

    parts = SHAPES[thing.kind].parts
    for part in parts:
        if part.tone in ("body", "dark"):
            middle = part.points.mean(axis=0)
            paint(middle + (part.points - middle) * (1 + OUTLINE_WIDTH / thing.radius), OUTLINE)
    for part in parts:
        paint(part.points, _INDEX[part.tone])
    return image


def _pattern(thing: SceneObject, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Where an object's texture has its second tone, at offsets from the centre in radii."""
    turn = np.radians(thing.tilt + (90 if thing.across else 0))
    cos, sin = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    period = np.float32(max(0.5, FINEST_PATTERN / thing.radius))
    a, b = (u * cos + v * sin) / period, (v * cos - u * sin) / period
    if thing.texture == "striped":
        return np.floor(2 * a + 0.5).astype(int) % 2 == 1
    if thing.texture == "chequered":
        return (np.floor(1.6 * a) + np.floor(1.6 * b)).astype(int) % 2 == 1
    row = np.floor(b)
    a = a + 0.5 * row
    return (a - np.floor(a) - 0.5) ** 2 + (b - row - 0.5) ** 2 < 0.3**2


def _cast_shadow(canvas: np.ndarray, drawn: Image.Image, thing: SceneObject, light: PaintingLight) -> None:
    """Darken the canvas where the object takes its light: the object's outline, moved away from it, blurred."""
    width = canvas.shape[1]
    outline = drawn.point(_OPAQUE).reduce(OVERSAMPLING)
    soft = outline.filter(ImageFilter.BoxBlur(1.2 if light.strength > 0.5 else 2.2))
    away = thing.radius * width * 0.28
    dx, dy = round(-light.x * away), round(-light.y * away + 1)
    moved = np.zeros((width, width), dtype=np.float32)
    blurred = np.asarray(soft, dtype=np.float32) / 255
    moved[max(dy, 0) :, max(dx, 0) : width + min(dx, 0)] = blurred[
        : width - max(dy, 0), max(-dx, 0) : width - max(dx, 0)
    ]
    canvas *= 1 - np.float32(0.25 + 0.2 * light.strength) * moved


def _palette(rgb: Colour, tint: np.ndarray) -> np.ndarray:
    """Red, green, blue and opacity of each index, float32 (4, 7)."""
    body = np.array(rgb, dtype=np.float32)
    bright = float(body @ np.array([0.3, 0.59, 0.11]))
    light = body + (255 - body) * 0.6
    ink = body * 0.22 if bright > 90 else light
    pattern = body * 0.6 if bright > 175 else body + (255 - body) * 0.5
    tones = {OUTLINE: body * 0.42, BODY: body, DARK: body * 0.64, LIGHT: light, INK: ink, PATTERN: pattern}
    opaque = [[*(tones[index] * tint), 1] for index in range(1, 7)]
    return np.array([[0, 0, 0, 0], *opaque], dtype=np.float32).T
