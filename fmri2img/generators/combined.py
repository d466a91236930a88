"""Generators made of generators: a blend of two pictures, and the best of several samples."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from fmri2img.errors import InputError
from fmri2img.features.extractors import ClipImage, ClipLayers, ConvNext, OpenClip, Pixels, Vae
from fmri2img.features.loaded import LoadedExtractor
from fmri2img.generators.diffusion import unique
from fmri2img.generators.protocol import LoadedGenerator, shape_of

if TYPE_CHECKING:
    from fmri2img.generators import AnyGenerator


class BlendGenerator(BaseModel):
    """Pixel by pixel, `share` of the picture of `base` and the rest of that of `low`, in the size of `base`.

    MindEye2 reports 0.75 of its refined pictures and 0.25 of its blurry ones: what resembles in meaning, and what
    resembles in layout.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["blend"] = "blend"
    base: "AnyGenerator"
    low: "AnyGenerator"
    share: float = Field(default=0.75, ge=0, le=1)

    @property
    def spaces(self) -> list[str]:
        return unique([*self.base.spaces, *self.low.spaces])

    def load(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> "LoadedBlend":
        return LoadedBlend(self, self.base.load(device, dtype), self.low.load(device, dtype))


class LoadedBlend:
    """The `blend` generator at work."""

    def __init__(self, config: BlendGenerator, base: LoadedGenerator, low: LoadedGenerator) -> None:
        self.config, self.base, self.low = config, base, low

    @property
    def spaces(self) -> list[str]:
        return self.config.spaces

    def check(self, shapes: Mapping[str, Sequence[int]]) -> None:
        self.base.check(shapes)
        self.low.check(shapes)

    def generate(self, features: Mapping[str, Tensor], generators: Sequence[torch.Generator]) -> Tensor:
        sharp = self.base.generate(features, generators)
        low = self.low.generate(features, generators).to(sharp.device)
        low = torch.nn.functional.interpolate(
            low, size=sharp.shape[-2:], mode="bilinear", align_corners=False, antialias=True
        )
        return (self.config.share * sharp + (1 - self.config.share) * low).clamp(0, 1)

    def provenance(self) -> dict[str, Any]:
        return self.base.provenance() | self.low.provenance()


class BestOfGenerator(BaseModel):
    """Of several samples of `base`, the one that looks most like what was predicted.

    `extractor` makes the feature of each sample as it made the training targets of `space`; the sample with the
    largest cosine to the predicted feature is kept. MindEye (Scotti et al. 2023) takes the best of 16 by CLIP.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["best-of"] = "best-of"
    base: "AnyGenerator"
    space: str
    extractor: Pixels | ClipImage | ClipLayers | OpenClip | Vae | ConvNext = Field(discriminator="kind")
    samples: int = Field(default=16, ge=2, le=1024)

    @property
    def spaces(self) -> list[str]:
        return unique([*self.base.spaces, self.space])

    def load(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> "LoadedBestOf":
        return LoadedBestOf(self, self.base.load(device, dtype), self.extractor.load(device))


class LoadedBestOf:
    """The `best-of` generator at work. It makes one sample of the whole batch at a time."""

    def __init__(self, config: BestOfGenerator, base: LoadedGenerator, judge: LoadedExtractor) -> None:
        self.config, self.base, self.judge = config, base, judge

    @property
    def spaces(self) -> list[str]:
        return self.config.spaces

    def check(self, shapes: Mapping[str, Sequence[int]]) -> None:
        found = shape_of(shapes, self.config.space)
        if found != tuple(self.judge.shape):
            raise InputError(
                f"best-of compares features {tuple(self.judge.shape)} of its extractor with {self.config.space}, which "
                f"is {found}: name the extractor that made {self.config.space}"
            )
        self.base.check(shapes)

    def generate(self, features: Mapping[str, Tensor], generators: Sequence[torch.Generator]) -> Tensor:
        wanted = features[self.config.space].float().cpu().flatten(1)
        best: Tensor | None = None
        for _ in range(self.config.samples):
            made = self.base.generate(features, generators)
            cosine = torch.nn.functional.cosine_similarity(self._features(made), wanted)
            if best is None:
                best, highest = made, cosine
                continue
            better = cosine > highest
            best = torch.where(better.to(made.device)[:, None, None, None], made, best)
            highest = torch.where(better, cosine, highest)
        assert best is not None  # there are two samples at least
        return best

    def _features(self, pictures: Tensor) -> Tensor:
        """(B, width) of the pictures as they would be saved."""
        drawn = (pictures.cpu() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        return torch.from_numpy(np.asarray(self.judge(list(drawn)), np.float32)).flatten(1)

    def provenance(self) -> dict[str, Any]:
        judge = self.config.extractor
        weights = judge.record().get("weights", {})
        return self.base.provenance() | {
            f"{judge.model_dump().get('model')}/{k}": v for k, v in weights.items()
        }
