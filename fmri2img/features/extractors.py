"""Frozen extractors: pictures and their captions to the feature spaces that decoders predict.

Two need no downloaded model: low-resolution pixels, and a caption embedding. Each is a pydantic model that a recipe
writes as `{kind: ...}`; the data set records it, so a cached column says how it was made. Of n pictures (H, W, 3) uint8
and n lists of captions, `compute` makes features (n, *shape) float32.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from fmri2img.errors import InputError


class Pixels(BaseModel):
    """The picture at low resolution: (channels, size, size) in [0, 1], by area averaging; channels 1 is luminance."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["pixels"] = "pixels"
    size: int = Field(default=16, ge=1, le=512)
    channels: Literal[1, 3] = 3

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.channels, self.size, self.size)

    def compute(self, pictures: list[np.ndarray], captions: list[list[str]]) -> np.ndarray:
        rows = []
        for picture in pictures:
            tensor = torch.tensor(picture).permute(2, 0, 1)[None].float() / 255
            if self.channels == 1:
                tensor = (tensor * torch.tensor([0.2125, 0.7154, 0.0721]).view(1, 3, 1, 1)).sum(
                    1, keepdim=True
                )
            size = (self.size, self.size)
            rows.append(torch.nn.functional.interpolate(tensor, size=size, mode="area")[0].numpy())
        return np.stack(rows)


class CaptionWords(BaseModel):
    """What is in the scene, from its captions: words and pairs of neighbouring words, hashed to random directions.

    Each term has a fixed random unit direction made from its SHA-256 (feature hashing in the manner of Weinberger et
    al. 2009, ICML, with Gaussian directions); a picture is the sum over terms, weighted by the share of its captions
    that hold the term, divided by the vector's length. No vocabulary, no fitted state, no download.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["caption-words"] = "caption-words"
    size: int = Field(default=128, ge=8, le=4096)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.size,)

    def compute(self, pictures: list[np.ndarray], captions: list[list[str]]) -> np.ndarray:
        return np.stack([self._embed(texts) for texts in captions])

    def _embed(self, captions: list[str]) -> np.ndarray:
        if not captions:
            raise InputError(
                "caption-words needs captions: this data set has a picture without one; use pixels alone"
            )
        vector = np.zeros(self.size, np.float64)
        counts = Counter(term for text in captions for term in _terms(text))
        for term in sorted(
            counts
        ):  # sums depend on their order in the last bit, and sets have another in each process
            vector += self._direction(term) * (counts[term] / len(captions))
        return (vector / max(float(np.linalg.norm(vector)), 1e-12)).astype(np.float32)

    def _direction(self, term: str) -> np.ndarray:
        cached = _DIRECTIONS.get((self.size, term))
        if cached is None:
            seed = int.from_bytes(hashlib.sha256(term.encode()).digest()[:8], "little")
            direction = np.random.default_rng(seed).normal(size=self.size)
            cached = _DIRECTIONS[self.size, term] = direction / np.linalg.norm(direction)
        return cached


_DIRECTIONS: dict[tuple[int, str], np.ndarray] = {}
_COMMON = frozenset(["a", "an", "and", "at", "in", "is", "of", "on", "the", "there", "to", "with", "over"])


def _terms(text: str) -> set[str]:
    words = [word for word in re.findall(r"[a-z]+", text.lower()) if word not in _COMMON]
    return set(words) | {f"{first} {second}" for first, second in pairwise(words)}


class Imported(BaseModel):
    """Features that somebody computed, brought into the data set by `fmri2img features import`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["imported"] = "imported"


AnyExtractor = Annotated[Pixels | CaptionWords | Imported, Field(discriminator="kind")]


def made_by(extractor: Pixels | CaptionWords | Imported, recorded: Mapping[str, Any]) -> bool:
    """Whether a column whose data set records `recorded` is what the extractor makes."""
    if isinstance(extractor, Imported):
        return recorded.get("kind") == "imported"
    return dict(recorded) == extractor.model_dump(mode="json")
