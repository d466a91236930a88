"""Teaching CLIP's image tower to see shapes, its text tower left as it is.

Learning captions together, a small transformer tells colours and backgrounds apart long before it tells a cup from a
fish. So the image tower learns on, in many small steps, to which caption its embedding belongs (the text tower is
locked, as Zhai et al. 2022 lock the image tower in LiT), which words the captions hold, and what every patch shows.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fmri2img.simulation.modelling.clip import WordReader, as_pixels
from fmri2img.simulation.records import BACKGROUNDS, COLOURS, TEXTURES, Scene
from fmri2img.simulation.shapes import SHAPES

NOTHING = -100
"""Label of a patch that the loss leaves out."""
CLASSES = {"thing": len(SHAPES) + len(BACKGROUNDS), "colour": len(COLOURS), "texture": len(TEXTURES)}
"""Labels of a patch: what is there, and the colour and texture of an object."""
OTHERS = 256
"""Captions of other pictures that each picture's own is told from."""


class SightTask:
    """The image tower and its projection learn; readers of words and patches learn with them and are not kept."""

    name = "sight"

    def __init__(
        self,
        model: Any,
        pictures: np.ndarray,
        tokens: np.ndarray,
        labels: np.ndarray,
        texts: np.ndarray,
    ) -> None:
        """`tokens` are ids (pictures, captions, 32), `texts` the captions' embeddings, `labels` by `patch_labels`."""
        width = model.config.vision_config.hidden_size
        self._words = WordReader(tokens, model.config.text_config.vocab_size)
        self._patches = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, sum(CLASSES.values())))
        learning = {
            "vision_model": model.vision_model,
            "visual_projection": model.visual_projection,
            "words": self._words,
            "patches": self._patches,
        }
        self.module: nn.Module = nn.ModuleDict(learning).train().to(model.device)
        self._model, self._pictures, self._labels = model, pictures, labels
        self._texts = torch.from_numpy(texts)
        self._scale = float(model.logit_scale.detach().exp())

    def loss(self, rows: np.ndarray, rng: torch.Generator) -> Tensor:
        model, device = self._model, self._model.device
        with torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=False):
            seen = model.vision_model(pixel_values=as_pixels(self._pictures[rows], device))
            images = model.visual_projection(seen.pooler_output).float()
        which = torch.randint(self._texts.shape[1], (len(rows),), generator=rng)
        others = torch.randint(self._texts[..., 0].numel(), (OTHERS,), generator=rng)
        texts = torch.cat([self._texts[torch.from_numpy(rows), which], self._texts.flatten(0, 1)[others]])
        similar = functional.normalize(images) @ functional.normalize(texts.to(device)).T
        truth = torch.arange(len(rows), device=device)
        contrast = functional.cross_entropy(self._scale * similar, truth)
        patches = self._patch_loss(seen.last_hidden_state[:, 1:].float(), rows)
        return contrast + self._words.loss(images, rows) + patches

    def _patch_loss(self, patches: Tensor, rows: np.ndarray) -> Tensor:
        labels = torch.from_numpy(self._labels[rows].astype(np.int64)).to(patches.device)
        read = self._patches(patches).split(tuple(CLASSES.values()), dim=2)
        losses = [
            functional.cross_entropy(part.flatten(0, 1), labels[..., i].flatten(), ignore_index=NOTHING)
            for i, part in enumerate(read)
        ]
        return torch.stack(losses).sum()


def patch_labels(scenes: Sequence[Scene], patches: int) -> np.ndarray:
    """Labels of scenes in `patches` rows and columns: int16 (scenes, patches * patches, 3), as in `CLASSES`.

    A patch shows the foremost object whose disc covers its centre, else the background.
    """
    places = (np.arange(patches) + 0.5) / patches
    x, y = places[None, :], places[:, None]
    kinds, colours = list(SHAPES), list(COLOURS)
    labels = np.full((len(scenes), patches, patches, len(CLASSES)), NOTHING, dtype=np.int16)
    for label, scene in zip(labels, scenes, strict=True):
        label[..., 0] = len(kinds) + BACKGROUNDS.index(scene.background.kind)
        for i in scene.painted:
            thing = scene.objects[i]
            inside = (x - thing.x) ** 2 + (y - thing.y) ** 2 < thing.radius**2
            label[inside] = (
                kinds.index(thing.kind),
                colours.index(thing.colour),
                TEXTURES.index(thing.texture),
            )
    return labels.reshape(len(scenes), patches * patches, len(CLASSES))
