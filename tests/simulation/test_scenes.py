"""Scenes, pictures and captions say the same thing."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fmri2img.simulation.captions import COLOUR_WORDS, SIZE_WORDS, TEXTURE_WORDS, write_captions
from fmri2img.simulation.objects import draw_parts
from fmri2img.simulation.records import (
    BACKGROUNDS,
    GROUNDS,
    LIGHTS,
    PICTURE_SIZE,
    SKIES,
    TEXTURES,
    Background,
    Light,
    Scene,
    SceneObject,
)
from fmri2img.simulation.scenes import draw_scene, render
from fmri2img.simulation.shapes import KINDS, SHAPES

GOLDEN = Path(__file__).parent / "golden" / "scenes.png"
"""Pictures 0 to 7 of seed 0, side by side."""
SOME = range(150)


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+(?:-[a-z]+)?", text))


def test_a_picture_is_a_pure_function_of_seed_and_id() -> None:
    assert draw_scene(0, 7) == draw_scene(0, 7)
    np.testing.assert_array_equal(render(draw_scene(0, 7)), render(draw_scene(0, 7)))


def test_other_seeds_and_ids_give_other_pictures() -> None:
    pictures = {render(draw_scene(seed, nsd_id)).tobytes() for seed in (0, 1) for nsd_id in SOME}
    assert len(pictures) == 2 * len(SOME)


def test_pictures_are_small_rgb() -> None:
    picture = render(draw_scene(0, 0))
    assert picture.shape == (PICTURE_SIZE, PICTURE_SIZE, 3)
    assert picture.dtype == np.uint8


def test_pictures_are_those_that_models_were_trained_on() -> None:
    golden = np.asarray(Image.open(GOLDEN)).astype(int)
    pictures = np.concatenate([render(draw_scene(0, nsd_id)) for nsd_id in range(8)], axis=1)
    assert (np.abs(pictures - golden) <= 2).mean() > 0.999


def test_captions_are_those_that_models_were_trained_on() -> None:
    assert write_captions(draw_scene(0, 3), 0, 3) == [
        "a large chequered orange crate, a blue fish and a turquoise car before brown mountains by day",
        "a huge chequered orange crate at the bottom before brown mountains by day, softly lit from the right",
        "an image of a chequered orange box, a chequered blue fish and a spotted turquoise car",
        "a large chequered orange box below a mid-sized chequered blue fish",
        "an orange box at the bottom and a blue fish at the top right, before brown mountains in the daytime",
    ]


def lone(kind: str, texture: str = "plain", light: str = "above") -> Scene:
    """A red thing at the upper left of a grey wall."""
    thing = SceneObject(
        kind, "red", (210, 40, 40), texture, False, "large", "left", "top", 0.3, 0.3, 0.25, 0.0, False
    )
    grey = (150, 150, 150)
    ground = Background("plain", "day", ("grey", "grey"), (grey, grey), 0.5, 0.0, 0.2, (0.5,) * 8)
    return Scene((thing,), (0,), ground, Light(light, "bright"))


def redness(picture: np.ndarray) -> np.ndarray:
    return picture[..., 0].astype(int) - picture[..., 1:].max(axis=2)


@pytest.mark.parametrize("kind", KINDS)
def test_an_object_is_painted_where_and_as_its_record_says(kind: str) -> None:
    red = (redness(render(lone(kind))) > 60).nonzero()
    assert len(red[0]) > 60
    away = (np.stack(red) + 0.5) / PICTURE_SIZE - 0.3
    assert np.hypot(*away).max() < 0.34
    assert np.abs(away.mean(axis=1)).max() < 0.14


@pytest.mark.parametrize("kind", KINDS)
def test_every_texture_shows_on_every_kind(kind: str) -> None:
    pictures = [render(lone(kind, texture)).astype(int) for texture in TEXTURES]
    for i, one in enumerate(pictures):
        for other in pictures[:i]:
            assert (np.abs(one - other).sum(axis=2) > 60).sum() > 40


def test_things_are_lighter_on_the_side_of_the_light_and_cast_their_shadow_to_the_other() -> None:
    left, right = (render(lone("ball", light=side)).astype(int) for side in ("left", "right"))
    assert left[19, 6].sum() > left[19, 32].sum() + 60
    assert right[19, 32].sum() > right[19, 6].sum() + 60
    wall = render(replace(lone("ball"), objects=(), painted=())).astype(int)
    assert left[30, 36].sum() < 0.8 * wall[30, 36].sum()
    assert right[30, 1].sum() < 0.8 * wall[30, 1].sum()


def test_enough_of_every_object_is_in_sight() -> None:
    for nsd_id in SOME:
        scene = draw_scene(0, nsd_id)
        covered = np.zeros((96, 96), dtype=bool)
        for i in reversed(scene.painted):
            mask = np.asarray(draw_parts(scene.objects[i], 96)) > 0
            assert (mask & ~covered).sum() > (0.6 if i == 0 else 0.5) * mask.sum()
            covered |= mask


def test_a_nearer_object_hides_what_is_behind_it() -> None:
    main = lone("box").objects[0]
    small = replace(main, kind="ball", colour="blue", rgb=(40, 40, 210), radius=0.1)
    scene = replace(lone("box"), objects=(main, small))
    before = render(replace(scene, painted=(0, 1))).astype(int)[21, 19]
    behind = render(replace(scene, painted=(1, 0))).astype(int)[21, 19]
    assert before[2] > before[0] + 60
    assert behind[0] > behind[2] + 60


def test_the_main_object_is_the_largest_and_in_no_others_place() -> None:
    for nsd_id in SOME:
        things = draw_scene(0, nsd_id).objects
        assert all(things[0].radius > other.radius for other in things[1:])
        assert len({(thing.column, thing.row) for thing in things}) == len(things)


def test_scenes_are_varied() -> None:
    scenes = [draw_scene(0, nsd_id) for nsd_id in range(400)]
    things = [thing for scene in scenes for thing in scene.objects]
    assert {thing.kind for thing in things} == set(KINDS)
    assert {thing.texture for thing in things} == set(TEXTURES)
    assert {len(scene.objects) for scene in scenes} == {2, 3, 4}
    assert {scene.background.kind for scene in scenes} == set(BACKGROUNDS)
    assert {scene.background.time for scene in scenes} == set(SKIES)
    assert {scene.light.side for scene in scenes} == set(LIGHTS)
    assert np.mean([scene.painted[0] != 0 for scene in scenes]) > 0.2


def test_captions_name_what_is_in_the_scene() -> None:
    for nsd_id in SOME:
        scene = draw_scene(0, nsd_id)
        captions = write_captions(scene, 0, nsd_id)
        assert len(captions) == 5
        assert max(len(caption.split()) for caption in captions) <= 24
        assert all(words(caption) & set(SHAPES[scene.objects[0].kind].words) for caption in captions)
        assert words(captions[0]) & set(SIZE_WORDS["large"])
        assert scene.light.side in words(captions[1])
        for thing in scene.objects:
            for caption in (captions[0], captions[2]):
                assert words(caption) & set(SHAPES[thing.kind].words)
                assert words(caption) & set(COLOUR_WORDS.get(thing.colour, (thing.colour,)))
            assert thing.texture == "plain" or words(captions[2]) & set(TEXTURE_WORDS[thing.texture])
        sky_or_wall, ground = scene.background.colours
        assert ground in captions[0] or scene.background.kind == "plain"
        assert sky_or_wall in captions[0] or scene.background.kind in GROUNDS


def test_captions_name_nothing_that_is_not_there() -> None:
    for nsd_id in SOME:
        scene = draw_scene(0, nsd_id)
        absent = set(KINDS) - {thing.kind for thing in scene.objects}
        said = words(" ".join(write_captions(scene, 0, nsd_id)))
        assert not said & {word for kind in absent for word in SHAPES[kind].words}
