"""Generators made of generators: a blend of two pictures, and the best of several samples."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from fmri2img.generators.diffusion import unique
from fmri2img.generators.protocol import LoadedGenerator

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
