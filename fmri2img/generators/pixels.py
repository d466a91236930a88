"""The simplest generator: low-resolution pixels, upsampled. It invents nothing."""

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from fmri2img.errors import InputError


class Generator(Protocol):
    """Feature spaces to pictures."""

    @property
    def spaces(self) -> list[str]: ...

    def generate(self, features: Mapping[str, Tensor], generators: Sequence[torch.Generator]) -> Tensor:
        """features {space: (B, *shape)} and one CPU generator an item to (B, 3, height, width) in [0, 1]."""
        ...


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

    def generate(self, features: Mapping[str, Tensor], generators: Sequence[torch.Generator]) -> Tensor:
        if self.space not in features:
            raise InputError(
                f"the generator needs the space {self.space}, the decoder predicts {sorted(features)}"
            )
        low = features[self.space].float()
        if low.ndim != 4 or low.shape[1] not in (1, 3):
            raise InputError(f"the generator needs (batch, 1 or 3, h, w), {self.space} is {tuple(low.shape)}")
        low = low.expand(-1, 3, -1, -1)
        if self.smooth:
            large = torch.nn.functional.interpolate(low, size=self.size, mode="bicubic", align_corners=False)
        else:
            large = torch.nn.functional.interpolate(low, size=self.size, mode="nearest-exact")
        return large.clamp(0, 1)
