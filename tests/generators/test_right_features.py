"""The generators on the simulation's trained models: features of the right picture make a picture more like it.

Each makes one picture from every scene's true features. A picture is told from another one's by the embedding of the
simulation's CLIP, or by pixels where the generator reads latents: the share of pairs in which the right one is nearer.
With features that say nothing the share is 0.5; 24 scenes in a ring of differences have a deviation below 0.06 then.
"""

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from fmri2img.features.extractors import ClipImage, ClipText, Vae
from fmri2img.generators import AnyGenerator
from fmri2img.simulation.captions import write_captions
from fmri2img.simulation.scenes import draw_scene, render

SCENES, SEED = 24, 77
UNCLIP = {"kind": "unclip", "model": "simulation/unclip", "image": "image", "guidance": 3.0, "steps": 6}
SD = {"kind": "sd", "model": "simulation/sd", "text": "text", "guidance": 3.0, "steps": 6}
LOW = {"kind": "vae", "model": "simulation/vae", "latents": "latents"}
KINDS: dict[str, tuple[dict[str, Any], str, float]] = {
    "vae": (LOW, "pixels", 0.99),
    "unclip": (UNCLIP, "embedding", 0.8),
    "unclip from latents": (UNCLIP | {"latents": "latents", "strength": 0.6}, "pixels", 0.9),
    "sd": (SD, "embedding", 0.75),
    "controlnet": (
        {**SD, "kind": "controlnet", "control": "simulation/controlnet", "structure": LOW},
        "pixels",
        0.75,
    ),
    "refine": (
        {**SD, "kind": "refine", "base": UNCLIP, "strength": 0.5},
        "embedding",
        0.8,
    ),
    "blend": ({"kind": "blend", "base": UNCLIP, "low": LOW, "share": 0.75}, "embedding", 0.8),
}
READ: TypeAdapter[Any] = TypeAdapter(AnyGenerator)


@pytest.fixture(scope="module")
def scenes() -> dict[str, Any]:
    drawn = [draw_scene(SEED, number) for number in range(SCENES)]
    pictures = [render(scene) for scene in drawn]
    captions = [write_captions(scene, SEED, number) for number, scene in enumerate(drawn)]
    text = ClipText(model="simulation/clip", captions="first", output="tokens").load(batch=SCENES)
    return {
        "pictures": np.stack(pictures),
        "image": ClipImage(model="simulation/clip").load(batch=SCENES)(pictures),
        "text": text(pictures, captions),
        "latents": Vae(model="simulation/vae").load(batch=SCENES)(pictures),
    }


def nearer(made: np.ndarray, seen: np.ndarray) -> float:
    """The share of pairs (i, j) in which picture i is more like what i saw than like what j saw."""
    a = made - seen.mean(0)
    b = seen - seen.mean(0)
    near = (a / np.linalg.norm(a, axis=1, keepdims=True)) @ (b / np.linalg.norm(b, axis=1, keepdims=True)).T
    own = np.diag(near)[:, None]
    return float((near < own).sum() / (len(near) * (len(near) - 1)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_right_features_make_a_picture_more_like_the_right_one(scenes: dict[str, Any], kind: str) -> None:
    told, judged, floor = KINDS[kind]
    features = {
        name: torch.from_numpy(np.asarray(scenes[name])).float() for name in ("image", "text", "latents")
    }
    drawn = [torch.Generator().manual_seed(i) for i in range(SCENES)]
    pictures = READ.validate_python(told).load("cpu").generate(features, drawn)
    made = (pictures * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    if judged == "pixels":
        flat = [x.reshape(SCENES, -1).astype(np.float64) for x in (made, scenes["pictures"])]
    else:
        look = ClipImage(model="simulation/clip").load(batch=SCENES)
        flat = [np.asarray(look(list(made))), np.asarray(scenes["image"])]
    right = nearer(*flat)
    wrong = nearer(np.roll(flat[0], 1, axis=0), flat[1])
    assert right > floor, (kind, right)
    assert wrong < 0.65 < right, (kind, wrong)
