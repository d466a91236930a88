"""Captions of simulated scenes: five sentences a person might write, from templates with synonyms."""

from collections.abc import Sequence

import numpy as np

from fmri2img.simulation.records import Background, Light, Scene, SceneObject
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
TEXTURE_WORDS: dict[str, tuple[str, ...]] = {
    "plain": ("", "plain"),
    "striped": ("striped", "stripy"),
    "spotted": ("spotted", "dotted"),
    "chequered": ("chequered",),
}
COUNT_WORDS = ("", "one thing", "two things", "three things", "four things")


def write_captions(scene: Scene, seed: int, nsd_id: int) -> list[str]:
    """Five captions of a scene, a pure function of scene, seed and picture id, of at most 24 words each.

    Each names the main object. The first names every object and the background, the second the light, the
    third all textures, the fourth how the main object stands to another, the fifth places.
    """
    rng = np.random.default_rng([CAPTION_STREAM, seed, nsd_id])
    main, others = scene.objects[0], scene.objects[1:]
    other = others[int(rng.integers(len(others)))]
    textured = _join([_thing(rng, thing, texture=True) for thing in scene.objects])
    first = _join([_thing(rng, main, size=True, texture=True), *(_thing(rng, thing) for thing in others)])
    opening = _pick(rng, (f"{COUNT_WORDS[len(scene.objects)]}:", "a picture of", "an image of"))
    return [
        f"{first} {_backdrop(rng, scene.background)}",
        f"{_thing(rng, main, size=True, texture=True)} {_place(rng, main)} "
        f"{_backdrop(rng, scene.background)}, {_light(rng, scene.light)}",
        f"{opening} {textured}",
        f"{_thing(rng, main, size=True, texture=True)} {_relation(scene, main, other)} "
        f"{_thing(rng, other, size=True, texture=True)}",
        f"{_thing(rng, main)} {_place(rng, main)} and {_thing(rng, other)} {_place(rng, other)}, "
        f"{_backdrop(rng, scene.background)}",
    ]


def _thing(rng: np.random.Generator, thing: SceneObject, *, size: bool = False, texture: bool = False) -> str:
    words = [
        _pick(rng, SIZE_WORDS[thing.size]) if size else "",
        _pick(rng, TEXTURE_WORDS[thing.texture]) if texture else "",
        _pick(rng, COLOUR_WORDS.get(thing.colour, (thing.colour,))),
        _pick(rng, SHAPES[thing.kind].words),
    ]
    return _with_article(" ".join(word for word in words if word))


def _place(rng: np.random.Generator, thing: SceneObject) -> str:
    if thing.column == "centre" and thing.row == "middle":
        return _pick(rng, ("in the centre", "in the middle"))
    if thing.column == "centre":
        return f"at the {thing.row}"
    if thing.row == "middle":
        return _pick(rng, (f"on the {thing.column}", f"at the {thing.column}"))
    return _pick(rng, (f"at the {thing.row} {thing.column}", f"in the {thing.row} {thing.column}"))


def _relation(scene: Scene, main: SceneObject, other: SceneObject) -> str:
    """Where the main object is, seen from another: before or behind it where they meet, else its side."""
    dx, dy = other.x - main.x, other.y - main.y
    if np.hypot(dx, dy) < 0.9 * (main.radius + other.radius):
        order = [scene.objects[i] for i in scene.painted]
        return "in front of" if order.index(main) > order.index(other) else "behind"
    if abs(dx) > abs(dy):
        return "to the left of" if dx > 0 else "to the right of"
    return "above" if dy > 0 else "below"


def _backdrop(rng: np.random.Generator, background: Background) -> str:
    """Where it is, in two to nine words."""
    first, second = background.colours
    match background.kind:
        case "plain":
            return f"on {_with_article(first)} {_pick(rng, ('background', 'wall'))}"
        case "fading":
            return f"on a wall {_pick(rng, ('fading', 'shading'))} from {first} to {second}"
        case "striped":
            return f"on {first} and {second} {_pick(rng, ('stripes', 'wallpaper stripes'))}"
        case "chequered":
            return f"on {first} and {second} {_pick(rng, ('tiles', 'checks'))}"
        case "room":
            return f"in {_with_article(first)} room with {_with_article(second)} floor"
        case "field":
            place = f"in {_with_article(second)} {_pick(rng, ('field', 'meadow'))}"
        case "hills":
            place = f"{_pick(rng, ('before', 'among'))} {second} hills"
        case "mountains":
            place = f"before {second} {_pick(rng, ('mountains', 'peaks'))}"
        case "sea":
            place = f"by {_with_article(second)} {_pick(rng, ('sea', 'ocean'))}"
        case _:
            place = f"in {_with_article(second)} {_pick(rng, ('town', 'city'))}"
    return f"{place} {_time(rng, background.time)}"


def _time(rng: np.random.Generator, time: str) -> str:
    if time == "day":
        return _pick(rng, ("by day", "in the daytime"))
    return _pick(rng, ("at sunset", "in the evening")) if time == "sunset" else "at night"


def _light(rng: np.random.Generator, light: Light) -> str:
    place = "above" if light.side == "above" else f"the {light.side}"
    if light.strength == "soft":
        return _pick(rng, (f"softly lit from {place}", f"in soft light from {place}"))
    return _pick(rng, (f"brightly lit from {place}", f"in bright light from {place}"))


def _with_article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def _join(things: Sequence[str]) -> str:
    return ", ".join(things[:-1]) + " and " + things[-1]


def _pick(rng: np.random.Generator, choices: Sequence[str]) -> str:
    return choices[int(rng.integers(len(choices)))]
