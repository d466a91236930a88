"""The simplest generator: low-resolution pixels, upsampled. It invents nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from fmri2img.errors import InputError
from fmri2img.generators.protocol import shape_of, shapes_of


class PixelsGenerator(BaseModel):
    """Predicted low-resolution pixels (B, 1 or 3, h, w), clipped to [0, 1] and enlarged to `size`.

    `smooth` enlarges bicubically; without it every low-resolution pixel stays a square.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["pixels"] = "pixels"
    space: str
    size: int = Field(default=64, ge=1, le=2048)
    smooth: bool = True

    @property
    def spaces(self) -> list[str]:
        return [self.space]

    def load(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> "LoadedPixels":
        """There is nothing to load; the work is float32 whatever the `dtype`."""
        return LoadedPixels(self, torch.device(device))


@dataclass(frozen=True)
class LoadedPixels:
    """The pixels generator at work."""

    config: PixelsGenerator
    device: torch.device

    @property
    def spaces(self) -> list[str]:
        return self.config.spaces

    def check(self, shapes: Mapping[str, Sequence[int]]) -> None:
        shape = shape_of(shapes, self.config.space)
        if len(shape) != 3 or shape[0] not in (1, 3):
            raise InputError(f"the generator pixels needs (1 or 3, h, w), {self.config.space} is {shape}")

    def generate(self, features: Mapping[str, Tensor], generators: Sequence[torch.Generator]) -> Tensor:
        self.check(shapes_of(features))
        low = features[self.config.space].to(self.device, torch.float32).expand(-1, 3, -1, -1)
        size = self.config.size
        if self.config.smooth:
            large = torch.nn.functional.interpolate(low, size=size, mode="bicubic", align_corners=False)
        else:
            large = torch.nn.functional.interpolate(low, size=size, mode="nearest-exact")
        return large.clamp(0, 1)

    def provenance(self) -> dict[str, Any]:
        return {}
