"""The simulation's ControlNet: low-level structure, a blurred picture, steers the network conditioned on captions."""

from typing import Any

import numpy as np
import torch
from diffusers import ControlNetModel
from torch import Tensor
from torch.nn import functional
from transformers import CLIPModel

from fmri2img.simulation.modelling.clip import as_pixels
from fmri2img.simulation.modelling.diffusion import CaptionTask, noise_prediction_loss, to_train

CONDITIONING_WIDTHS = (8, 16, 32)
"""Two of their steps halve the side: 64 x 64 pictures meet 16 x 16 latents."""
COARSE = (8, 16)
"""Sides in pixels to which pictures are reduced before the ControlNet sees them, enlarged again."""


def new_controlnet(unet: Any) -> Any:
    """From the downward half of a trained network, as Zhang et al. (2023) begin; with nothing to add yet."""
    kind: Any = ControlNetModel
    made = kind.from_unet(unet, conditioning_embedding_out_channels=CONDITIONING_WIDTHS)
    return made.to(device=unet.device, memory_format=torch.channels_last)


def hint(pictures: Tensor, side: int) -> Tensor:
    """Pictures (n, 3, 64, 64) averaged to `side` x `side` pixels and enlarged again, bilinearly."""
    small = functional.interpolate(pictures, size=(side, side), mode="area")
    return functional.interpolate(small, size=pictures.shape[-2:], mode="bilinear", align_corners=False)


class ControlTask(CaptionTask):
    """The ControlNet learns, the network it steers stays."""

    name = "controlnet"

    def __init__(
        self,
        controlnet: Any,
        unet: Any,
        clip: CLIPModel,
        *,
        pictures: np.ndarray,
        latents: np.ndarray,
        tokens: np.ndarray,
        empty: np.ndarray,
    ) -> None:
        super().__init__(unet, clip, latents=latents, tokens=tokens, empty=empty)
        self._unet.requires_grad_(False)
        self.module = to_train(controlnet)
        self._controlnet = controlnet
        self._pictures = pictures

    def loss(self, rows: np.ndarray, rng: torch.Generator) -> Tensor:
        latents, condition = self._drawn(rows, rng)
        side = COARSE[int(torch.randint(len(COARSE), (1,), generator=rng))]
        structure = hint(as_pixels(self._pictures[rows], latents.device) / 2 + 0.5, side)

        def controlled(noisy: Tensor, steps: Tensor, tokens: Tensor, class_labels: Tensor | None) -> Tensor:
            down, middle = self._controlnet(noisy, steps, tokens, structure, return_dict=False)
            return self._unet(
                noisy,
                steps,
                tokens,
                down_block_additional_residuals=down,
                mid_block_additional_residual=middle,
            ).sample

        return noise_prediction_loss(controlled, latents, condition, rng)
