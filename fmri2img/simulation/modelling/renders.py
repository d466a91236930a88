"""The pictures and captions the simulation's models learn from: rendered once, kept in a work folder."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fmri2img.console import Tell
from fmri2img.files import write_json
from fmri2img.simulation.captions import write_captions
from fmri2img.simulation.records import PICTURE_SIZE, Scene
from fmri2img.simulation.scenes import draw_scene, render

SCENE_SEED = 1 << 31
"""Added to the seed of the training: no data set's scenes have a seed from here on."""
TRAINING_IDS = 1 << 41
HELD_OUT_IDS = 1 << 42
CAPTIONS = 5
CHUNK = 512


@dataclass(frozen=True)
class Renders:
    """n pictures, uint8 (n, 64, 64, 3), and the captions of each."""

    pictures: np.ndarray
    captions: list[list[str]]


def scene_of(seed: int, picture: int) -> Scene:
    """The scene of a picture id from `TRAINING_IDS` or `HELD_OUT_IDS` on, of a training's seed."""
    return draw_scene(SCENE_SEED + seed, picture)


def rendered(folder: Path, *, seed: int, first: int, count: int, tell: Tell) -> Renders:
    """Pictures `first` to `first + count`, made where they are missing; a run that was stopped goes on.

    A chunk's captions are written after its pictures have reached the disk, and say that it is whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, shape = folder / "pictures.u8", (count, PICTURE_SIZE, PICTURE_SIZE, 3)
    size = int(np.prod(shape))
    if not path.exists() or path.stat().st_size != size:
        with open(path, "wb") as file:
            file.truncate(size)
        for old in folder.glob("captions-*.json"):
            old.unlink()
    pictures = np.memmap(path, dtype=np.uint8, mode="r+", shape=shape)
    captions: list[list[str]] = []
    for start in range(0, count, CHUNK):
        stop = min(start + CHUNK, count)
        said = folder / f"captions-{start // CHUNK:05d}.json"
        if not said.exists():
            scenes = [scene_of(seed, first + i) for i in range(start, stop)]
            for i, scene in zip(range(start, stop), scenes, strict=True):
                pictures[i] = render(scene)
            pictures.flush()
            texts = [
                write_captions(scene, SCENE_SEED + seed, first + i)
                for i, scene in zip(range(start, stop), scenes, strict=True)
            ]
            write_json(said, texts)
        captions += json.loads(said.read_text())
        tell(stop, count)
    return Renders(np.memmap(path, dtype=np.uint8, mode="r", shape=shape), captions)


def scenes_digest(seed: int) -> str:
    """SHA-256 of 64 pictures and their captions: changes when scenes are drawn, painted or told otherwise."""
    digest = hashlib.sha256()
    for picture in range(TRAINING_IDS, TRAINING_IDS + 64):
        scene = scene_of(seed, picture)
        digest.update(render(scene).tobytes())
        digest.update("\n".join(write_captions(scene, SCENE_SEED + seed, picture)).encode())
    return digest.hexdigest()
