"""The simulation's diffusion models: a network conditioned on captions and image embeddings (unCLIP), one on captions.

The first learns both conditions at once, as Stable unCLIP's network has both. Without an image embedding it is a
network conditioned on captions, and the second goes on from that.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn
from transformers import CLIPModel

from fmri2img.simulation.modelling.autoencoder import GROUPS, LATENT_CHANNELS, LATENT_SIZE
from fmri2img.simulation.modelling.clip import HEADS
from fmri2img.simulation.modelling.sizes import PROJECTION, Size

CLEAN = 0.5
"""Share of image embeddings to which no noise is added."""
SNR_CAP = 5.0
SHARES = {"image": 0.6, "both": 0.05, "caption": 0.25, "nothing": 0.1}
"""Of the rows that unCLIP learns from, by what the network is told."""
NO_CAPTION = 0.12
"""Share of the rows that the network of `sd` learns from without their caption (Ho and Salimans 2022)."""


def new_unet(size: Size) -> Any:
    """An untrained network for latents (4, 16, 16), attending to captions at 8 x 8 and 4 x 4."""
    unet: Any = UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=size.unet_widths,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=size.clip_width,
        attention_head_dim=HEADS,
        norm_num_groups=GROUPS,
        class_embed_type="projection",
        projection_class_embeddings_input_dim=2 * PROJECTION,
    )
    return unet.to(memory_format=torch.channels_last)


def to_train(model: Any) -> nn.Module:
    """A network or ControlNet in training, with attention in plain products.

    In bfloat16 on a processor torch's fused attention takes a third of the whole time.
    """
    model.set_attn_processor(AttnProcessor())
    module: nn.Module = model.train()
    return module


def new_scheduler() -> Any:
    """The noise schedule, noisier at its end than Stable Diffusion's: small latents show their mean through noise."""
    return DDPMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.02,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        steps_offset=1,
        clip_sample=False,
    )


def new_noising() -> Any:
    """The schedule of noise added to image embeddings, as in Stable unCLIP."""
    return DDPMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=False)


@dataclass(frozen=True)
class Condition:
    """What a network is told: the caption's tokens (n, 32, width) and, for unCLIP, class labels (n, 128)."""

    tokens: Tensor
    labels: Tensor | None


def class_labels(embeddings: Tensor, levels: Tensor, noise: Tensor, normaliser: Any) -> Tensor:
    """Image embeddings (n, 64) with noise of levels (n,) added, and the levels' embedding: (n, 128).

    As `StableUnCLIPImg2ImgPipeline.noise_image_embeddings` makes them.
    """
    noised = new_noising().add_noise(normaliser.scale(embeddings), noise, levels)
    told = get_timestep_embedding(levels, PROJECTION, flip_sin_to_cos=True, downscale_freq_shift=0)
    return torch.cat([normaliser.unscale(noised), told], dim=1)


def caption_tokens(clip: CLIPModel, ids: Tensor) -> Tensor:
    """The text tower's last hidden states (n, 32, width), what Stable Diffusion attends to."""
    return clip.text_model(input_ids=ids).last_hidden_state


def noise_prediction_loss(
    unet: Any, latents: Tensor, condition: Condition, rng: torch.Generator, **extra: Any
) -> Tensor:
    """Squared error of the predicted v (Salimans and Ho 2022), weighted by min-SNR (Hang et al. 2023, for v)."""
    scheduler, device = new_scheduler(), latents.device
    noise = torch.randn(latents.shape, generator=rng).to(device)
    steps = torch.randint(1000, (len(latents),), generator=rng).to(device)
    noisy = scheduler.add_noise(latents, noise, steps)
    noisy = noisy.contiguous(memory_format=torch.channels_last)
    with torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=False):
        predicted = unet(noisy, steps, condition.tokens, class_labels=condition.labels, **extra)
    target = scheduler.get_velocity(latents, noise, steps)
    error = (predicted.float() - target).square().mean(dim=(1, 2, 3))
    kept = scheduler.alphas_cumprod.to(device)[steps]
    snr = kept / (1 - kept)
    return (snr.clamp(max=SNR_CAP) / (snr + 1) * error).mean() * 4


class UnclipTask:
    """unCLIP: the picture from its CLIP image embedding, from its caption, from both or from nothing."""

    name = "unclip"
    hidden: tuple[str, ...] = ("_blocks.", "mid_block.")

    def __init__(
        self,
        unet: Any,
        clip: CLIPModel,
        normaliser: Any,
        *,
        latents: np.ndarray,
        embeddings: np.ndarray,
        tokens: np.ndarray,
        empty: np.ndarray,
    ) -> None:
        """`latents` are scaled; `tokens` are ids (pictures, captions, 32), `empty` those of the empty caption."""
        self.module = to_train(unet)
        self._clip, self._normaliser = clip.eval(), normaliser
        self._latents, self._embeddings = latents, embeddings
        self._tokens, self._empty = tokens, empty

    def loss(self, rows: np.ndarray, rng: torch.Generator) -> Tensor:
        device = self._clip.device
        told = torch.multinomial(torch.tensor(list(SHARES.values())), len(rows), True, generator=rng).numpy()
        captioned, pictured = np.isin(told, (1, 2)), np.isin(told, (0, 1))
        tokens = drawn_captions(self._tokens[rows], self._empty, captioned, rng)
        noisy = torch.rand(len(rows), generator=rng) > CLEAN
        levels = torch.where(noisy, torch.randint(1000, (len(rows),), generator=rng), 0)
        noise = torch.randn((len(rows), PROJECTION), generator=rng)
        with torch.no_grad():
            labels = class_labels(torch.from_numpy(self._embeddings[rows]), levels, noise, self._normaliser)
            labels = labels * torch.from_numpy(pictured)[:, None]
            condition = Condition(
                caption_tokens(self._clip, torch.from_numpy(tokens).to(device)), labels.to(device)
            )
        latents = torch.from_numpy(self._latents[rows]).float().to(device)
        return noise_prediction_loss(lambda *a, **k: self.module(*a, **k).sample, latents, condition, rng)


def drawn_captions(
    tokens: np.ndarray, empty: np.ndarray, told: np.ndarray, rng: torch.Generator
) -> np.ndarray:
    """One caption of each row's, ids (n, 32), or the empty one where the network is not told."""
    which = torch.randint(tokens.shape[1], (len(tokens),), generator=rng).numpy()
    return np.where(told[:, None], tokens[np.arange(len(tokens)), which], empty)


class CaptionTask:
    """The picture from its caption. With `control`, only a ControlNet learns, and `hints` are its pictures."""

    name = "sd"
    hidden: tuple[str, ...] = ("_blocks.", "mid_block.")

    def __init__(
        self,
        unet: Any,
        clip: CLIPModel,
        *,
        latents: np.ndarray,
        tokens: np.ndarray,
        empty: np.ndarray,
    ) -> None:
        self.module = to_train(unet)
        self._unet, self._clip = unet, clip.eval()
        self._latents, self._tokens, self._empty = latents, tokens, empty

    def loss(self, rows: np.ndarray, rng: torch.Generator) -> Tensor:
        latents, condition = self._drawn(rows, rng)
        return noise_prediction_loss(lambda *a, **k: self._unet(*a, **k).sample, latents, condition, rng)

    def _drawn(self, rows: np.ndarray, rng: torch.Generator) -> tuple[Tensor, Condition]:
        device = self._clip.device
        told = torch.rand(len(rows), generator=rng).numpy() >= NO_CAPTION
        ids = torch.from_numpy(drawn_captions(self._tokens[rows], self._empty, told, rng)).to(device)
        with torch.no_grad():
            condition = Condition(caption_tokens(self._clip, ids), None)
        return torch.from_numpy(self._latents[rows]).float().to(device), condition


def caption_unet(unclip: Any) -> Any:
    """A network without image embeddings that does what `unclip` does when its class labels are zero.

    Their embedding is then a constant beside the time's, and goes into the bias of the time's last layer.
    """
    settings = {name: value for name, value in unclip.config.items() if not name.startswith("_")}
    settings |= {"class_embed_type": None, "projection_class_embeddings_input_dim": None}
    unet: Any = UNet2DConditionModel(**settings)
    weights = {
        name: value for name, value in unclip.state_dict().items() if not name.startswith("class_embedding.")
    }
    with torch.no_grad():
        constant = unclip.class_embedding(torch.zeros(1, 2 * PROJECTION, device=unclip.device))[0]
    weights["time_embedding.linear_2.bias"] = weights["time_embedding.linear_2.bias"] + constant
    unet.load_state_dict(weights)
    return unet.to(device=unclip.device, memory_format=torch.channels_last)
