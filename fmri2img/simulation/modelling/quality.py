"""How good the simulation's models are, measured on pictures that none of them has seen."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fmri2img.console import Tell
from fmri2img.evaluation.metrics_pictures import pixcorr
from fmri2img.simulation.captions import COLOUR_WORDS
from fmri2img.simulation.modelling import measures
from fmri2img.simulation.modelling.autoencoder import decode, encode
from fmri2img.simulation.modelling.clip import as_pixels, embed_captions, embed_pictures
from fmri2img.simulation.modelling.control import hint
from fmri2img.simulation.modelling.prepared import per_picture
from fmri2img.simulation.modelling.renders import Renders
from fmri2img.simulation.modelling.sampling import Models, as_bytes, from_captions, from_embeddings
from fmri2img.simulation.modelling.sizes import Size
from fmri2img.simulation.modelling.tokenizer import token_ids
from fmri2img.simulation.records import COLOURS, PICTURE_SIZE, Scene
from fmri2img.simulation.shapes import SHAPES

GUIDANCES = (1.0, 2.0, 3.0, 5.0, 7.0)
HINT_SIDE = 16
CPU = torch.device("cpu")
BACKGROUNDS: Mapping[str, str] = {
    "plain": "a thing on a plain wall",
    "fading": "a thing on a wall fading from one colour to another",
    "striped": "a thing on stripes",
    "chequered": "a thing on tiles",
    "room": "a thing in a room with a floor",
    "field": "a thing in a field",
    "hills": "a thing before hills",
    "mountains": "a thing before mountains",
    "sea": "a thing by the sea",
    "town": "a thing in a town",
}


def reconstructed(models: Models, pictures: np.ndarray) -> np.ndarray:
    """Pictures through the autoencoder and back, uint8."""

    def there_and_back(pixels: Tensor) -> Tensor:
        return decode(models.vae, encode(models.vae, pixels) * models.vae.config.scaling_factor)

    return as_bytes(torch.from_numpy(per_picture(pictures, there_and_back, CPU, _quiet)))


def embedded(models: Models, pictures: np.ndarray) -> np.ndarray:
    """Image embeddings (n, 64) of pictures uint8."""
    return per_picture(pictures, lambda pixels: embed_pictures(models.clip, pixels), CPU, _quiet)


@torch.no_grad()
def said(models: Models, captions: Sequence[str]) -> np.ndarray:
    """Text embeddings (n, 64) of captions."""
    return embed_captions(models.clip, torch.from_numpy(token_ids(models.tokenizer, captions))).numpy()


def judge(
    models: Models, held_out: Renders, scenes: Sequence[Scene], size: Size, tell: Tell
) -> dict[str, Any]:
    """Every figure of the card. The first `size.sampled` pictures are made again; the others are the reference."""
    count = size.sampled
    asked, captions = held_out.pictures[:count], [texts[0] for texts in held_out.captions[:count]]
    true, reference = embedded(models, asked), embedded(models, held_out.pictures[count:])
    told = said(models, captions)
    parts = 2 * len(GUIDANCES) + 1
    done = 0

    def figures(made: np.ndarray) -> dict[str, float]:
        nonlocal done
        done += 1
        tell(done, parts)
        found = embedded(models, made)
        return {
            "frechet": _short(measures.frechet(found, reference)),
            "image_cosine": _short(np.diag(measures.cosines(found, true)).mean()),
            "caption_cosine": _short(np.diag(measures.cosines(found, told)).mean()),
            "two_way": _short(measures.two_way(measures.cosines(true, found))),
            "kind": _short(right_kinds(models, found, scenes[:count])),
            "pixel_correlation": _short(_correlation(made, asked)),
        }

    def curve(sample: Callable[[float], np.ndarray]) -> dict[str, dict[str, float]]:
        return {f"{guidance:g}": figures(sample(guidance)) for guidance in GUIDANCES}

    steps = size.sampling_steps
    embeddings = torch.from_numpy(true)
    unclip = curve(lambda guidance: from_embeddings(models, embeddings, guidance=guidance, steps=steps))
    sd = curve(lambda guidance: from_captions(models, captions, guidance=guidance, steps=steps))
    hints = hint(as_pixels(asked, CPU) / 2 + 0.5, HINT_SIDE)
    steered = from_captions(models, captions, guidance=2.0, steps=steps, hints=hints)
    rebuilt = reconstructed(models, asked)
    return {
        "pictures": count,
        "reference_pictures": len(reference),
        "sampling_steps": steps,
        "vae": {
            "psnr": _short(measures.psnr(rebuilt, asked)),
            "frechet": _short(measures.frechet(embedded(models, rebuilt), reference)),
        },
        "clip": zero_shot(models, embedded(models, held_out.pictures), scenes)
        | {"caption_two_way": _short(measures.two_way(measures.cosines(true, told)))},
        "floor": {
            "frechet": _short(measures.frechet(true, reference)),
            "caption_cosine": _short(np.diag(measures.cosines(true, told)).mean()),
            "kind": _short(right_kinds(models, true, scenes[:count])),
        },
        "unclip": unclip,
        "sd": sd,
        "controlnet": figures(steered),
    }


def zero_shot(models: Models, embeddings: np.ndarray, scenes: Sequence[Scene]) -> dict[str, Any]:
    """Share of pictures whose main object's kind, its colour (told its kind) and the background a prompt names best.

    One text embedding a class: the mean over synonyms (Radford et al. 2021, section 3.1.4).
    """
    mains = [scene.objects[0] for scene in scenes]
    named = {name: COLOUR_WORDS.get(name, (name,)) for name in COLOURS}
    right_colour = []
    for kind in SHAPES:
        rows = [i for i, main in enumerate(mains) if main.kind == kind]
        if not rows:
            continue
        prompts = {
            name: [f"a large {colour} {word}" for colour in words for word in SHAPES[kind].words]
            for name, words in named.items()
        }
        found = _best(models, embeddings[rows], prompts)
        right_colour += [name == mains[i].colour for i, name in zip(rows, found, strict=True)]
    found_place = _best(models, embeddings, {name: [prompt] for name, prompt in BACKGROUNDS.items()})
    right_place = [name == scene.background.kind for name, scene in zip(found_place, scenes, strict=True)]
    return {
        "kind": _short(right_kinds(models, embeddings, scenes)),
        "colour": _short(np.mean(right_colour)),
        "background": _short(np.mean(right_place)),
        "classes": {"kind": len(SHAPES), "colour": len(named), "background": len(BACKGROUNDS)},
    }


def right_kinds(models: Models, embeddings: np.ndarray, scenes: Sequence[Scene]) -> float:
    """Share of pictures, by their embeddings (n, 64), whose main object's kind a prompt names best."""
    kinds = {
        kind: [f"a {how} {word}" for word in SHAPES[kind].words for how in ("large", "big", "huge")]
        for kind in SHAPES
    }
    found = _best(models, embeddings, kinds)
    return float(np.mean([kind == scene.objects[0].kind for kind, scene in zip(found, scenes, strict=True)]))


def _best(models: Models, embeddings: np.ndarray, prompts: Mapping[str, Sequence[str]]) -> list[str]:
    texts = []
    for several in prompts.values():
        each = said(models, several)
        texts.append((each / np.linalg.norm(each, axis=1, keepdims=True)).mean(axis=0))
    names = list(prompts)
    return [names[i] for i in measures.cosines(embeddings, np.stack(texts)).argmax(axis=1)]


def _correlation(made: np.ndarray, true: np.ndarray) -> float:
    """Mean PixCorr of pictures uint8 (n, 64, 64, 3)."""
    first, second = (np.array(pictures.transpose(0, 3, 1, 2)) for pictures in (made, true))
    return float(pixcorr(first, second, size=PICTURE_SIZE).mean())


def _short(value: float | np.floating[Any]) -> float:
    return float(f"{float(value):.4g}")


def _quiet(done: int, total: int, note: str = "") -> None:
    pass
