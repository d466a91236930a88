"""Simulated pictures: two to four objects before a background, in a light, drawn from a seed and a picture id.

A scene is a small record of what is where; `render` paints it at 64 x 64. One object is the main one and
larger than the others, so two pictures may agree in much and still differ. Objects stand before one another,
and enough of each stays in sight to tell what it is.
"""

import numpy as np

from fmri2img.simulation.backgrounds import paint_background
from fmri2img.simulation.objects import paint_object, painting_light
from fmri2img.simulation.records import (
    COLOURS,
    COLUMNS,
    GROUND_LIGHT,
    GROUNDS,
    INDOORS,
    LIGHTS,
    PICTURE_SIZE,
    ROWS,
    SIZES,
    SKIES,
    STRENGTHS,
    TEXTURES,
    WALL_COLOURS,
    Background,
    Colour,
    Light,
    Scene,
    SceneObject,
)
from fmri2img.simulation.shapes import KINDS, SHAPES

SCENE_STREAM = 1
"""First word of the random stream of scenes, apart from those of the cortex."""
IN_SIGHT = 0.72
"""Share of an object's disc that others may not cover: outlines are not discs, so a little more is lost."""
_DISC_GRID = (np.arange(32) + 0.5) / 32


def draw_scene(seed: int, nsd_id: int) -> Scene:
    """The scene of a picture id: a pure function of both numbers; every scene has its own random stream."""
    rng = np.random.default_rng([SCENE_STREAM, seed, nsd_id])
    background = _draw_background(rng)
    light = Light(str(rng.choice(list(LIGHTS))), str(rng.choice(list(STRENGTHS))))
    count = int(rng.choice([2, 3, 4], p=[0.4, 0.4, 0.2]))
    usable = [name for name, rgb in COLOURS.items() if all(_far(rgb, other) for other in _seen(background))]
    colours = [str(name) for name in rng.choice(usable, size=count, replace=False)]
    kinds = [str(name) for name in rng.choice(KINDS, size=count, replace=False)]
    cells = rng.permutation(9).tolist()
    objects = [_draw_object(rng, kinds[0], colours[0], "large", cells.pop())]
    painted = [0]
    for i in range(1, count):
        size = "medium" if rng.random() < (0.7 if i == 1 else 0.35) else "small"
        for cell in list(cells):
            thing = _draw_object(rng, kinds[i], colours[i], size, cell)
            order = [len(objects), *painted] if rng.random() < 0.4 else [*painted, len(objects)]
            if _all_in_sight([*objects, thing], order):
                objects.append(thing)
                painted = order
                cells.remove(cell)
                break
    return Scene(tuple(objects), tuple(painted), background, light)


def _draw_object(rng: np.random.Generator, kind: str, colour: str, size: str, cell: int) -> SceneObject:
    column, row = cell % 3, cell // 3
    radius = float(rng.uniform(*SIZES[size]))
    reach = min(0.3, 0.49 - radius)
    x, y = (0.5 + reach * (place - 1) + float(rng.normal(0, 0.02)) for place in (column, row))
    tilt = SHAPES[kind].tilt
    return SceneObject(
        kind=kind,
        colour=colour,
        rgb=_vary(rng, COLOURS[colour]),
        texture=str(rng.choice(TEXTURES, p=[0.4, 0.2, 0.2, 0.2])),
        across=bool(rng.random() < 0.5),
        size=size,
        column=COLUMNS[column],
        row=ROWS[row],
        x=x,
        y=y,
        radius=radius,
        tilt=float(rng.uniform(-tilt, tilt)),
        mirrored=bool(rng.random() < 0.5),
    )


def _all_in_sight(objects: list[SceneObject], order: list[int]) -> bool:
    """Whether enough of every object's disc is left uncovered by those in front of it."""
    x, y = _DISC_GRID[None, :], _DISC_GRID[:, None]
    discs = [(x - thing.x) ** 2 + (y - thing.y) ** 2 < thing.radius**2 for thing in objects]
    covered = np.zeros((len(_DISC_GRID), len(_DISC_GRID)), dtype=bool)
    for i in reversed(order):
        if np.count_nonzero(discs[i] & ~covered) < IN_SIGHT * np.count_nonzero(discs[i]):
            return False
        covered |= discs[i]
    return True


def _draw_background(rng: np.random.Generator) -> Background:
    outdoors = bool(rng.random() < 0.6)
    kind = str(rng.choice(list(GROUNDS) if outdoors else INDOORS))
    time = str(rng.choice(list(SKIES), p=[0.5, 0.25, 0.25])) if outdoors else "day"
    if outdoors:
        first, second = time, str(rng.choice(list(GROUNDS[kind])))
        rgbs = _vary(rng, SKIES[time]), _vary(rng, GROUNDS[kind][second])
    else:
        first, second = (str(name) for name in rng.choice(list(WALL_COLOURS), size=2, replace=False))
        rgbs = _vary(rng, WALL_COLOURS[first]), _vary(rng, WALL_COLOURS[second])
    return Background(
        kind=kind,
        time=time,
        colours=(first, second),
        rgbs=rgbs if kind != "plain" else (rgbs[0], rgbs[0]),
        horizon=float(rng.uniform(0.5, 0.66)),
        angle=float(rng.choice([0.0, 45.0, 90.0, 135.0])),
        period=float(rng.uniform(0.2, 0.32)),
        profile=tuple(rng.uniform(0, 1, size=8).tolist()),
    )


def _seen(background: Background) -> tuple[Colour, Colour]:
    """Its two colours in the light of its time of day."""
    first, second = background.rgbs
    red, green, blue = (round(value * GROUND_LIGHT[background.time]) for value in second)
    return first, (red, green, blue)


def _vary(rng: np.random.Generator, rgb: Colour) -> Colour:
    """A shade near a named colour, so that pixels are not a lookup table of words."""
    shade = np.clip(np.array(rgb) * rng.uniform(0.9, 1.08) + rng.normal(0, 5, 3), 0, 255)
    red, green, blue = shade.astype(int).tolist()
    return red, green, blue


def _far(a: Colour, b: Colour) -> bool:
    return sum((p - q) ** 2 for p, q in zip(a, b, strict=True)) > 90**2


def render(scene: Scene) -> np.ndarray:
    """Paint a scene: uint8 (64, 64, 3), anti-aliased."""
    light = painting_light(scene.light, scene.background.time)
    canvas = paint_background(scene.background, light, PICTURE_SIZE)
    for i in scene.painted:
        paint_object(canvas, scene.objects[i], light)
    return np.ascontiguousarray(np.clip(np.rint(canvas), 0, 255).astype(np.uint8).transpose(1, 2, 0))
