"""The simulation's autoencoder: `diffusers.AutoencoderKL`, 64 x 64 pictures to latents (4, 16, 16)."""

from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional

from fmri2img.simulation.modelling.clip import as_pixels
from fmri2img.simulation.modelling.sizes import Size
from fmri2img.simulation.records import PICTURE_SIZE

LATENT_CHANNELS, LATENT_SIZE = 4, 16
KL_WEIGHT = 1e-5
GROUPS = 8


def new_autoencoder(size: Size) -> Any:
    """An untrained autoencoder that halves the side twice."""
    levels = len(size.vae_widths)
    model: Any = AutoencoderKL(
        sample_size=PICTURE_SIZE,
        latent_channels=LATENT_CHANNELS,
        block_out_channels=size.vae_widths,
        layers_per_block=1,
        norm_num_groups=GROUPS,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        mid_block_add_attention=False,
    )
    return model.to(memory_format=torch.channels_last)


class AutoencoderTask:
    """Absolute and squared error of the decoded picture, with a little of the divergence from a normal distribution
    (Rombach et al. 2022, section 3.1; no adversary: scenes have few fine textures to make up)."""

    name = "vae"
    hidden: tuple[str, ...] = ()

    def __init__(self, model: Any, pictures: np.ndarray) -> None:
        self.module: nn.Module = model.train()
        self._model, self._pictures = model, pictures

    def loss(self, rows: np.ndarray, rng: torch.Generator) -> Tensor:
        model = self._model
        pixels = as_pixels(self._pictures[rows], model.device).contiguous(memory_format=torch.channels_last)
        posterior = model.encode(pixels).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=rng).to(model.device)
        decoded = model.decode(posterior.mean + posterior.std * noise).sample
        error = functional.l1_loss(decoded, pixels) + functional.mse_loss(decoded, pixels)
        return error + KL_WEIGHT * posterior.kl().mean()


@torch.no_grad()
def scaling_factor(model: Any, pictures: np.ndarray) -> float:
    """One over the standard deviation of latents (Rombach et al. 2022, appendix G), to four digits."""
    means = encode(model, as_pixels(pictures, model.device))
    return float(f"{1 / float(means.std()):.4g}")


def encode(model: Any, pixels: Tensor) -> Tensor:
    """Means of the latents (n, 4, 16, 16), not scaled."""
    return model.encode(pixels).latent_dist.mean


def decode(model: Any, latents: Tensor) -> Tensor:
    """Pictures (n, 3, 64, 64) from 0 to 1 of scaled latents."""
    scaled = latents / model.config.scaling_factor
    return (model.decode(scaled).sample / 2 + 0.5).clamp(0, 1)
