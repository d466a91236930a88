"""Scenes, pictures and captions say the same thing."""

import re

import numpy as np
import pytest

from fmri2img.simulation.captions import COLOUR_WORDS, SIZE_WORDS, write_captions
from fmri2img.simulation.scenes import PICTURE_SIZE, Background, Scene, SceneObject, draw_scene, render
from fmri2img.simulation.shapes import KINDS, SHAPES

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


@pytest.mark.parametrize("kind", KINDS)
def test_an_object_is_painted_where_and_as_its_record_says(kind: str) -> None:
    thing = SceneObject(kind, "red", (210, 40, 40), "large", "left", "top", 0.3, 0.3, 0.25, 0.0, False)
    ground = Background("plain", ("grey", "grey"), ((150, 150, 150), (150, 150, 150)), 0.0, 0.2)
    picture = render(Scene((thing,), (0,), ground)).astype(int)
    red = (np.abs(picture - thing.rgb).sum(axis=2) < 10).nonzero()
    assert len(red[0]) > 60
    away = (np.stack(red) + 0.5) / PICTURE_SIZE - 0.3
    assert np.hypot(*away).max() < 0.3
    assert np.abs(away.mean(axis=1)).max() < 0.14
    assert (picture[PICTURE_SIZE // 2 + 8 :, :] == 150).all()


def test_the_main_object_is_the_largest_and_in_no_others_place() -> None:
    for nsd_id in SOME:
        things = draw_scene(0, nsd_id).objects
        assert all(things[0].radius > other.radius for other in things[1:])
        assert len({(thing.column, thing.row) for thing in things}) == len(things)


def test_scenes_are_varied() -> None:
    scenes = [draw_scene(0, nsd_id) for nsd_id in range(400)]
    assert {thing.kind for scene in scenes for thing in scene.objects} == set(KINDS)
    assert {len(scene.objects) for scene in scenes} == {1, 2, 3}
    assert len({scene.background.kind for scene in scenes}) == 5


def test_captions_name_what_is_in_the_scene() -> None:
    for nsd_id in SOME:
        scene = draw_scene(0, nsd_id)
        captions = write_captions(scene, 0, nsd_id)
        assert 4 <= len(captions) <= 5
        assert all(words(caption) & set(SHAPES[scene.objects[0].kind].words) for caption in captions)
        full = words(captions[0])
        for thing in scene.objects:
            assert full & set(SHAPES[thing.kind].words)
            assert full & set(SIZE_WORDS[thing.size])
            assert full & set(COLOUR_WORDS.get(thing.colour, (thing.colour,)))
        used = scene.background.colours[: 1 if scene.background.kind == "plain" else 2]
        assert all(colour in captions[0] for colour in used)


def test_captions_name_nothing_that_is_not_there() -> None:
    for nsd_id in SOME:
        scene = draw_scene(0, nsd_id)
        absent = set(KINDS) - {thing.kind for thing in scene.objects}
        said = words(" ".join(write_captions(scene, 0, nsd_id)))
        assert not said & {word for kind in absent for word in SHAPES[kind].words}
