"""An extractor that is ready to compute: the protocol, and the one way in which all models run.

A model sees a fixed number of rows at a time, the last of them padded, so that no picture's feature depends on its
neighbours or on how many are left. Reading and preparing can be done ahead, in another thread.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

Pictures = Sequence[np.ndarray]
"""uint8 (height, width, 3) each, of any size."""
Captions = Sequence[Sequence[str]]


class LoadedExtractor(Protocol):
    """Pictures and their captions to features."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one picture's feature."""
        ...

    def prepare(self, pictures: Pictures, captions: Captions | None = None) -> Any:
        """What can be done before the model is free: decoding is done, this resizes, crops, finds tokens."""
        ...

    def compute(self, prepared: Any) -> np.ndarray:
        """Features (n, *shape) float32 of what `prepare` made of n pictures."""
        ...

    def __call__(self, pictures: Pictures, captions: Captions | None = None) -> np.ndarray:
        """`compute` of `prepare`."""
        ...


class Computed:
    """A function of pictures and captions as a loaded extractor."""

    def __init__(self, shape: tuple[int, ...], function: Callable[[Pictures, Captions], np.ndarray]) -> None:
        self.shape, self._function = shape, function

    def prepare(self, pictures: Pictures, captions: Captions | None = None) -> tuple[Pictures, Captions]:
        """Nothing to do."""
        return pictures, [[]] * len(pictures) if captions is None else captions

    def compute(self, prepared: tuple[Pictures, Captions]) -> np.ndarray:
        """Call the function."""
        return self._function(*prepared)

    def __call__(self, pictures: Pictures, captions: Captions | None = None) -> np.ndarray:
        """Features (n, *shape) float32."""
        return self.compute(self.prepare(pictures, captions))


class LoadedModel:
    """A frozen model: `rows_of` makes one or more rows of a picture, `forward` a feature of each of `batch` rows.

    Where a picture has several rows, as one a caption, its feature is their mean.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        rows_of: Callable[[np.ndarray, Sequence[str]], Tensor],
        forward: Callable[[Tensor], Tensor],
        batch: int,
        device: torch.device | str,
    ) -> None:
        self.shape, self.batch, self.device = shape, batch, torch.device(device)
        self._rows_of, self._forward = rows_of, forward

    def prepare(self, pictures: Pictures, captions: Captions | None = None) -> list[Tensor]:
        """Rows (k, ...) of each picture, on the CPU."""
        told: Captions = [[]] * len(pictures) if captions is None else captions
        return [self._rows_of(picture, texts) for picture, texts in zip(pictures, told, strict=True)]

    @torch.inference_mode()
    def compute(self, prepared: list[Tensor]) -> np.ndarray:
        """Features (n, *shape) float32, from forward passes of `batch` rows each."""
        features = np.empty((len(prepared), *self.shape), np.float32)
        if not prepared:
            return features
        rows, made = torch.cat(prepared), []
        for first in range(0, len(rows), self.batch):
            part = rows[first : first + self.batch]
            short = self.batch - len(part)
            if short:
                part = torch.cat([part, part[:1].expand(short, *part.shape[1:])])
            feature = self._forward(part.to(self.device)).float().cpu()
            made.append(feature[: self.batch - short].reshape(self.batch - short, *self.shape))
        at, whole = 0, torch.cat(made)
        for n, own in enumerate(prepared):
            features[n] = whole[at] if len(own) == 1 else whole[at : at + len(own)].mean(0)
            at += len(own)
        return features

    def __call__(self, pictures: Pictures, captions: Captions | None = None) -> np.ndarray:
        """Features (n, *shape) float32."""
        return self.compute(self.prepare(pictures, captions))
