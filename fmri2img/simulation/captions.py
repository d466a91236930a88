"""Captions of simulated scenes: four or five sentences a person might write, from templates with synonyms."""

from collections.abc import Sequence

import numpy as np

from fmri2img.simulation.scenes import Background, Scene, SceneObject
from fmri2img.simulation.shapes import SHAPES

CAPTION_STREAM = 2

COLOUR_WORDS: dict[str, tuple[str, ...]] = {
    "red": ("red", "crimson"),
    "yellow": ("yellow", "golden"),
    "teal": ("teal", "turquoise"),
    "purple": ("purple", "violet"),
}
SIZE_WORDS: dict[str, tuple[str, ...]] = {
    "large": ("large", "big", "huge"),
    "medium": ("medium-sized", "mid-sized"),
    "small": ("small", "little", "tiny"),
}
COUNT_WORDS = ("", "one thing", "two things", "three things")


def write_captions(scene: Scene, seed: int, nsd_id: int) -> list[str]:
    """Four or five captions of a scene, a pure function of scene, seed and picture id.

    Each names the main object; the first names the background too, and every object with size, colour, kind
    and place.
    """
    rng = np.random.default_rng([CAPTION_STREAM, seed, nsd_id])
    main, others = scene.objects[0], scene.objects[1:]
    full = [_thing(rng, o, size=True, place=True) for o in scene.objects]
    plain = [_thing(rng, o, size=False, place=False) for o in scene.objects]
    captions = [
        f"{_join(full)} {_backdrop(rng, scene.background)}",
        f"{COUNT_WORDS[len(scene.objects)]} {_backdrop(rng, scene.background)}: {_join(plain)}",
        f"{_thing(rng, main, size=True, place=True)} {_backdrop(rng, scene.background)}",
        f"{_pick(rng, ('a picture of', 'an image of', 'a drawing of'))} {_join(plain)}",
    ]
    if others:
        other = others[int(rng.integers(len(others)))]
        near = _thing(rng, main, size=True, place=False)
        captions.append(
            f"{near} {_relation(scene, main, other)} {_thing(rng, other, size=True, place=False)}"
        )
    return captions


def _thing(rng: np.random.Generator, thing: SceneObject, *, size: bool, place: bool) -> str:
    words = [
        _pick(rng, COLOUR_WORDS.get(thing.colour, (thing.colour,))),
        _pick(rng, SHAPES[thing.kind].words),
    ]
    if size:
        words.insert(0, _pick(rng, SIZE_WORDS[thing.size]))
    if place:
        words.append(_place(rng, thing))
    return _with_article(" ".join(words))


def _place(rng: np.random.Generator, thing: SceneObject) -> str:
    if thing.column == "centre" and thing.row == "middle":
        return _pick(rng, ("in the centre", "in the middle"))
    if thing.column == "centre":
        return f"at the {thing.row}"
    if thing.row == "middle":
        return _pick(rng, (f"on the {thing.column}", f"at the {thing.column}"))
    return _pick(rng, (f"at the {thing.row} {thing.column}", f"in the {thing.row} {thing.column} corner"))


def _relation(scene: Scene, main: SceneObject, other: SceneObject) -> str:
    """Where the main object is, seen from another: before or behind it where they meet, else its side."""
    dx, dy = other.x - main.x, other.y - main.y
    if np.hypot(dx, dy) < 0.8 * (main.radius + other.radius):
        order = [scene.objects[i] for i in scene.painted]
        return "in front of" if order.index(main) > order.index(other) else "behind"
    if abs(dx) > abs(dy):
        return "to the left of" if dx > 0 else "to the right of"
    return "above" if dy > 0 else "below"


def _backdrop(rng: np.random.Generator, background: Background) -> str:
    first, second = background.colours
    if background.kind == "plain":
        return f"on {_with_article(_pick(rng, ('plain ', '')) + first)} background"
    if background.kind == "gradient":
        return f"on a background {_pick(rng, ('fading', 'shading'))} from {first} to {second}"
    if background.kind == "stripes":
        return _pick(
            rng, (f"on {first} and {second} stripes", f"on a striped {first} and {second} background")
        )
    if background.kind == "checker":
        return (
            f"on {_with_article(first)} and {second} {_pick(rng, ('checkerboard', 'chequered background'))}"
        )
    return f"under {_with_article(first)} sky above {second} ground"


def _with_article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def _join(things: Sequence[str]) -> str:
    if len(things) == 1:
        return things[0]
    return ", ".join(things[:-1]) + " and " + things[-1]


def _pick(rng: np.random.Generator, choices: Sequence[str]) -> str:
    return choices[int(rng.integers(len(choices)))]
