"""The teacher of CLIP's image tower: a small convolutional network that learns shapes quickly, and is not kept.

A transformer of this size learns hardly any shapes from some hundred thousand rows; convolutions do in minutes. So
the text tower learns together with this network, and the image tower then learns to see what it sees.
"""

from typing import Any

import torch
from torch import Tensor, nn

from fmri2img.simulation.modelling.autoencoder import GROUPS
from fmri2img.simulation.modelling.sizes import PROJECTION

STRIDES = (2, 1, 2, 1, 2, 1, 1)
"""Of its convolutions: 64 x 64 pixels become a map of 8 x 8, as many places as the image tower has patches."""
SHARES = (8, 4, 4, 2, 2, 1, 1)
"""Which part of the last width each has."""


class Teacher(nn.Module):
    """Pixels (n, 3, 64, 64) from -1 to 1 to image embeddings (n, 64): convolutions, the largest value of each channel,
    a projection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = [3, *(max(width // share, GROUPS) for share in SHARES)]
        parts: list[nn.Module] = []
        for before, after, stride in zip(widths, widths[1:], STRIDES, strict=False):
            parts += [nn.Conv2d(before, after, 3, stride, 1), nn.GroupNorm(GROUPS, after), nn.ReLU()]
        self.blocks = nn.Sequential(*parts)
        self.projection = nn.Linear(width, PROJECTION)
        module: Any = self
        module.to(memory_format=torch.channels_last)

    def seen(self, pixels: Tensor) -> Tensor:
        """What it sees where: (n, width, 8, 8)."""
        seen: Tensor = self.blocks(pixels.contiguous(memory_format=torch.channels_last))
        return seen

    def embed(self, seen: Tensor) -> Tensor:
        """Image embeddings (n, 64), not normalised, of what is seen where."""
        embedded: Tensor = self.projection(seen.amax(dim=(2, 3)))
        return embedded
