"""Simulated pictures: a scene of one to three objects on a background, drawn from a seed and a picture id.

A scene is a small record of what is where; `render` paints it at 64 x 64. One object is the main one and
larger than the others, so two pictures may agree in much and still differ.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from fmri2img.simulation.shapes import KINDS, SHAPES

PICTURE_SIZE = 64
OVERSAMPLING = 4
SCENE_STREAM = 1
"""First word of the random stream of scenes, apart from those of the cortex."""

Colour = tuple[int, int, int]

COLOURS: dict[str, Colour] = {
    "red": (214, 40, 46),
    "orange": (242, 130, 34),
    "yellow": (247, 208, 56),
    "green": (52, 152, 66),
    "teal": (24, 162, 160),
    "blue": (40, 88, 206),
    "purple": (126, 58, 176),
    "pink": (240, 122, 176),
    "brown": (130, 82, 44),
    "white": (246, 246, 242),
    "black": (30, 30, 36),
}
BACKGROUND_COLOURS: dict[str, Colour] = {
    "cream": (246, 234, 204),
    "grey": (156, 160, 166),
    "sky blue": (150, 202, 240),
    "mint": (176, 226, 190),
    "lavender": (200, 186, 232),
    "rose": (238, 190, 190),
    "navy": (28, 40, 92),
    "dark green": (28, 74, 48),
    "maroon": (98, 26, 44),
    "sand": (212, 180, 120),
    "charcoal": (62, 64, 72),
}
BACKGROUNDS: tuple[str, ...] = ("plain", "gradient", "stripes", "checker", "horizon")
SIZES: dict[str, tuple[float, float]] = {
    "large": (0.24, 0.31),
    "medium": (0.15, 0.19),
    "small": (0.095, 0.12),
}
"""Radius of an object as a share of the picture's width."""
COLUMNS: tuple[str, ...] = ("left", "centre", "right")
ROWS: tuple[str, ...] = ("top", "middle", "bottom")


@dataclass(frozen=True)
class SceneObject:
    """One object. `x`, `y` and `radius` are shares of the picture's width, y down; `tilt` in degrees."""

    kind: str
    colour: str
    rgb: Colour
    size: str
    column: str
    row: str
    x: float
    y: float
    radius: float
    tilt: float
    mirrored: bool


@dataclass(frozen=True)
class Background:
    """What is behind the objects: a kind, two named colours (plain: the first), a pattern's angle and period."""

    kind: str
    colours: tuple[str, str]
    rgbs: tuple[Colour, Colour]
    angle: float
    period: float


@dataclass(frozen=True)
class Scene:
    """What a picture shows: `objects` with the main one first, `painted` their indices from back to front."""

    objects: tuple[SceneObject, ...]
    painted: tuple[int, ...]
    background: Background


def draw_scene(seed: int, nsd_id: int) -> Scene:
    """The scene of a picture id: a pure function of both numbers; every scene has its own random stream."""
    rng = np.random.default_rng([SCENE_STREAM, seed, nsd_id])
    background = _draw_background(rng)
    count = int(rng.choice([1, 2, 3], p=[0.25, 0.4, 0.35]))
    cells = rng.permutation(9)
    usable = [name for name, rgb in COLOURS.items() if all(_far(rgb, other) for other in background.rgbs)]
    colours = rng.choice(usable, size=count, replace=False)
    kinds = rng.choice(KINDS, size=count, replace=False)
    objects: list[SceneObject] = []
    for i in range(count):
        size = "large" if rng.random() < 0.8 else "medium"
        if i > 0:
            size = (
                "medium" if size == "large" and objects[0].size == "large" and rng.random() < 0.5 else "small"
            )
        objects.append(_draw_object(rng, str(kinds[i]), str(colours[i]), size, int(cells[i])))
    return Scene(tuple(objects), _painting_order(rng, objects), background)


def _draw_object(rng: np.random.Generator, kind: str, colour: str, size: str, cell: int) -> SceneObject:
    column, row = cell % 3, cell // 3
    radius = float(rng.uniform(*SIZES[size]))
    reach = min(0.3, 0.49 - radius)
    x, y = (0.5 + reach * (place - 1) + float(rng.normal(0, 0.025)) for place in (column, row))
    tilt = SHAPES[kind].tilt
    return SceneObject(
        kind=kind,
        colour=colour,
        rgb=_vary(rng, COLOURS[colour]),
        size=size,
        column=COLUMNS[column],
        row=ROWS[row],
        x=x,
        y=y,
        radius=radius,
        tilt=float(rng.uniform(-tilt, tilt)),
        mirrored=bool(rng.random() < 0.5),
    )


def _draw_background(rng: np.random.Generator) -> Background:
    kind = str(rng.choice(BACKGROUNDS))
    first, second = (str(name) for name in rng.choice(list(BACKGROUND_COLOURS), size=2, replace=False))
    rgbs = (_vary(rng, BACKGROUND_COLOURS[first]), _vary(rng, BACKGROUND_COLOURS[second]))
    angle, period = float(rng.choice([0.0, 45.0, 90.0, 135.0])), float(rng.uniform(0.16, 0.3))
    return Background(kind, (first, second), rgbs if kind != "plain" else (rgbs[0], rgbs[0]), angle, period)


def _painting_order(rng: np.random.Generator, objects: list[SceneObject]) -> tuple[int, ...]:
    """Small objects in front of the main one, unless one stands clear enough to be seen behind it."""
    main = objects[0]
    behind = [
        i
        for i, thing in enumerate(objects[1:], start=1)
        if np.hypot(thing.x - main.x, thing.y - main.y) > main.radius and rng.random() < 0.5
    ]
    front = [i for i in range(1, len(objects)) if i not in behind]
    return (*behind, 0, *front)


def _vary(rng: np.random.Generator, rgb: Colour) -> Colour:
    """A shade near a named colour, so that pixels are not a lookup table of words."""
    red, green, blue = np.clip(np.array(rgb) * rng.uniform(0.9, 1.08) + rng.normal(0, 5, 3), 0, 255).astype(
        int
    )
    return int(red), int(green), int(blue)


def _far(a: Colour, b: Colour) -> bool:
    return sum((p - q) ** 2 for p, q in zip(a, b, strict=True)) > 90**2


def render(scene: Scene) -> np.ndarray:
    """Paint a scene: uint8 (64, 64, 3), anti-aliased by averaging 4 x 4 finer pixels."""
    width = PICTURE_SIZE * OVERSAMPLING
    image = _paint_background(scene.background, width)
    draw = ImageDraw.Draw(image)
    for i in scene.painted:
        _paint_object(draw, scene.objects[i], width)
    return np.asarray(image.reduce(OVERSAMPLING))


def _paint_background(background: Background, width: int) -> Image.Image:
    first, second = (np.array(rgb, dtype=np.float32) for rgb in background.rgbs)
    y, x = np.mgrid[0:width:2, 0:width:2].astype(np.float32) / width
    if background.kind == "plain":
        return Image.new("RGB", (width, width), background.rgbs[0])
    turn = np.radians(background.angle)
    along = (x * np.cos(turn) + y * np.sin(turn)).astype(np.float32)
    if background.kind == "gradient":
        mix = (along - along.min()) / (along.max() - along.min())
    elif background.kind == "stripes":
        mix = (np.floor(along / background.period * 2) % 2).astype(np.float32)
    elif background.kind == "checker":
        mix = ((np.floor(x / background.period) + np.floor(y / background.period)) % 2).astype(np.float32)
    else:
        mix = (y > 0.45 + background.period).astype(np.float32)
    pixels = (first + mix[..., None] * (second - first)).astype(np.uint8)
    return Image.fromarray(pixels).resize((width, width), Image.Resampling.NEAREST)


def _paint_object(draw: ImageDraw.ImageDraw, thing: SceneObject, width: int) -> None:
    turn = np.radians(thing.tilt)
    turned = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    centre = np.array([thing.x, thing.y]) * width
    tones = _tones(thing.rgb)
    parts = SHAPES[thing.kind].parts
    flip = np.array([-1.0 if thing.mirrored else 1.0, 1.0])

    def paint(points: np.ndarray, colour: Colour) -> None:
        placed = centre + (points * flip) @ turned * thing.radius * width
        draw.polygon(placed.ravel().tolist(), fill=colour)

    for part in parts:
        if part.tone in ("body", "dark"):
            middle = part.points.mean(axis=0)
            paint(middle + (part.points - middle) * (1 + 0.022 / thing.radius), tones["outline"])
    for part in parts:
        paint(part.points, tones[part.tone])


def _tones(rgb: Colour) -> dict[str, Colour]:
    body = np.array(rgb, dtype=float)
    bright = float(body @ np.array([0.3, 0.59, 0.11]))
    light = body + (255 - body) * 0.6
    dark = body * 0.62
    ink = body * 0.22 if bright > 90 else light
    tones = {"body": body, "dark": dark, "light": light, "ink": ink, "outline": body * 0.45}
    return {name: (int(value[0]), int(value[1]), int(value[2])) for name, value in tones.items()}
