"""The simulation's CLIP: image and text towers of `transformers.CLIPModel`, trained to tell which caption is whose."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from fmri2img.simulation.modelling.sizes import Size
from fmri2img.simulation.modelling.tokenizer import CONTEXT
from fmri2img.simulation.records import PICTURE_SIZE

PATCH = 8
PROJECTION = 64
HEADS = 4


def new_clip(size: Size, tokenizer: Any) -> Any:
    """An untrained model for 64 x 64 pictures and captions of 32 tokens."""
    tower = {
        "hidden_size": size.clip_width,
        "intermediate_size": 4 * size.clip_width,
        "num_attention_heads": HEADS,
        "projection_dim": PROJECTION,
    }
    text = tower | {
        "num_hidden_layers": size.text_layers,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": CONTEXT,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = tower | {
        "num_hidden_layers": size.vision_layers,
        "image_size": PICTURE_SIZE,
        "patch_size": PATCH,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=PROJECTION))


def image_processor() -> CLIPImageProcessor:
    """How pictures enter: 64 x 64, values from -1 to 1."""
    side = {"height": PICTURE_SIZE, "width": PICTURE_SIZE}
    return CLIPImageProcessor(
        size={"shortest_edge": PICTURE_SIZE},
        crop_size=side,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )


def as_pixels(pictures: np.ndarray, device: torch.device) -> Tensor:
    """Pictures uint8 (n, 64, 64, 3) as float32 (n, 3, 64, 64) from -1 to 1, what CLIP and the autoencoder take."""
    pixels = torch.from_numpy(np.array(pictures)).to(device).permute(0, 3, 1, 2)
    return pixels.float() / 127.5 - 1


def embed_pictures(model: Any, pixels: Tensor) -> Tensor:
    """Projected image embeddings (n, 64), not normalised, of pixels from -1 to 1."""
    return model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)


def embed_captions(model: Any, ids: Tensor) -> Tensor:
    """Projected text embeddings (n, 64), not normalised, of token ids (n, 32)."""
    return model.text_projection(model.text_model(input_ids=ids).pooler_output)


class WordReader(nn.Linear):
    """Reads from image embeddings which words the captions of a picture hold, rare ones counting more.

    A loss that teaches an image tower much from few pictures (Huang et al. 2024, SuperClass).
    """

    def __init__(self, tokens: np.ndarray, vocabulary: int) -> None:
        """`tokens` are ids (pictures, captions of each, 32)."""
        super().__init__(PROJECTION, vocabulary)
        self._said = np.zeros((len(tokens), vocabulary), dtype=bool)
        self._said[np.arange(len(tokens))[:, None], tokens.reshape(len(tokens), -1)] = True
        frequency = self._said.mean(axis=0)
        rare = np.log(1 / np.maximum(frequency, 1 / len(tokens))) * (frequency > 0)
        self._weights = rare.astype(np.float32)

    def loss(self, embeddings: Tensor, rows: np.ndarray) -> Tensor:
        """Cross entropy of the words read from embeddings (n, 64) of these pictures."""
        said = torch.from_numpy(self._said[rows] * self._weights).to(embeddings.device)
        return functional.cross_entropy(self(embeddings), said / said.sum(1, keepdim=True))


class ClipTask:
    """The symmetric contrastive loss (Radford et al. 2021, figure 3) of pictures with one of their captions each.

    The words of all captions are read from the image's embedding beside it; their reader is not kept.
    """

    name = "clip"

    def __init__(self, model: Any, pictures: np.ndarray, tokens: np.ndarray, end: int) -> None:
        """`tokens` are ids (pictures, captions of each, 32)."""
        self._words = WordReader(tokens, model.config.text_config.vocab_size).to(model.device)
        self.module: nn.Module = nn.ModuleDict({"clip": model.train(), "reader": self._words})
        self._model, self._pictures, self._tokens, self._end = model, pictures, tokens, end

    def loss(self, rows: np.ndarray, rng: torch.Generator) -> Tensor:
        model, device = self._model, self._model.device
        which = torch.randint(self._tokens.shape[1], (len(rows),), generator=rng).numpy()
        ids = torch.from_numpy(self._tokens[rows, which]).to(device)
        longest = int((ids == self._end).long().argmax(1).max()) + 1  # the rest is padding, after the end
        with torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=False):
            images = embed_pictures(model, as_pixels(self._pictures[rows], device)).float()
            texts = embed_captions(model, ids[:, :longest]).float()
        similar = functional.normalize(images) @ functional.normalize(texts).T
        scaled = model.logit_scale.clamp(max=float(np.log(100))).exp() * similar
        truth = torch.arange(len(rows), device=device)
        contrast = 0.5 * (functional.cross_entropy(scaled, truth) + functional.cross_entropy(scaled.T, truth))
        return contrast + self._words.loss(images, rows)
