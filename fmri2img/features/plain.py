"""Feature spaces that need no model: low-resolution pixels, a caption embedding, and what somebody else computed.

Of n pictures (H, W, 3) uint8 and n lists of captions, `compute` makes features (n, *shape) float32.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from fmri2img.errors import InputError
from fmri2img.features.loaded import Captions, Computed, LoadedExtractor, Pictures


class PlainExtractor(BaseModel):
    """An extractor that is nothing but its settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one picture's feature."""
        raise NotImplementedError

    def compute(self, pictures: Pictures, captions: Captions) -> np.ndarray:
        """Features (n, *shape) float32 of n pictures."""
        raise NotImplementedError

    def record(self) -> dict[str, Any]:
        """What a data set records of the space: its identity."""
        return self.model_dump(mode="json")

    def load(
        self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, *, batch: int = 64
    ) -> LoadedExtractor:
        """The extractor, ready; there is nothing to load, and it computes in float32 on the CPU."""
        return Computed(self.shape, self.compute)


class Pixels(PlainExtractor):
    """The picture at low resolution: (channels, size, size) in [0, 1], by area averaging; channels 1 is luminance."""

    kind: Literal["pixels"] = "pixels"
    size: int = Field(default=16, ge=1, le=512)
    channels: Literal[1, 3] = 3

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.channels, self.size, self.size)

    def compute(self, pictures: Pictures, captions: Captions) -> np.ndarray:
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


class CaptionWords(PlainExtractor):
    """What is in the scene, from its captions: words and pairs of neighbouring words, hashed to random directions.

    Each term has a fixed random unit direction made from its SHA-256 (feature hashing in the manner of Weinberger et
    al. 2009, ICML, with Gaussian directions); a picture is the sum over terms, weighted by the share of its captions
    that hold the term, divided by the vector's length. No vocabulary, no fitted state, no download.
    """

    kind: Literal["caption-words"] = "caption-words"
    size: int = Field(default=128, ge=8, le=4096)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.size,)

    def compute(self, pictures: Pictures, captions: Captions) -> np.ndarray:
        return np.stack([self._embed(texts) for texts in captions])

    def _embed(self, captions: Sequence[str]) -> np.ndarray:
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

    def record(self) -> dict[str, Any]:
        """Nothing but its kind; the data set records the files they came from."""
        return self.model_dump(mode="json")
