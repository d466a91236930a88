"""Pictures from the trained models, by deterministic DDIM: for judging them and for the sheet of samples."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from fmri2img.simulation.modelling.autoencoder import LATENT_CHANNELS, LATENT_SIZE, decode
from fmri2img.simulation.modelling.diffusion import caption_tokens, class_labels, new_scheduler
from fmri2img.simulation.modelling.sizes import PROJECTION
from fmri2img.simulation.modelling.tokenizer import token_ids

BATCH = 64


@dataclass(frozen=True)
class Models:
    """The trained models, loaded as float32; `sd` and `unclip` are the networks of those pipelines."""

    clip: Any
    tokenizer: Any
    vae: Any
    unclip: Any
    normaliser: Any
    sd: Any
    controlnet: Any


def from_embeddings(
    models: Models, embeddings: Tensor, *, guidance: float, steps: int, seed: int = 0
) -> np.ndarray:
    """unCLIP: pictures uint8 (n, 64, 64, 3) of image embeddings (n, 64), with no caption and no noise added."""
    empty = torch.from_numpy(token_ids(models.tokenizer, [""]))
    parts = []
    for start in range(0, len(embeddings), BATCH):
        some = embeddings[start : start + BATCH]
        levels = torch.zeros(len(some), dtype=torch.long)
        noise = torch.randn((len(some), PROJECTION), generator=_generator(seed, start + 1))
        labels = class_labels(some, levels, noise, models.normaliser)
        tokens = caption_tokens(models.clip, empty).expand(len(some), -1, -1)

        def predict(
            noisy: Tensor, step: Tensor, told: bool, tokens: Any = tokens, labels: Any = labels
        ) -> Tensor:
            given = labels if told else torch.zeros_like(labels)
            return models.unclip(noisy, step, tokens, class_labels=given).sample

        parts.append(_sampled(models, predict, len(some), guidance, steps, _generator(seed, start)))
    return np.concatenate(parts)


def from_captions(
    models: Models,
    captions: Sequence[str],
    *,
    guidance: float,
    steps: int,
    seed: int = 0,
    hints: Tensor | None = None,
) -> np.ndarray:
    """Pictures uint8 (n, 64, 64, 3) of captions; with hints (n, 3, 64, 64), also of their structure."""
    empty = torch.from_numpy(token_ids(models.tokenizer, [""]))
    parts = []
    for start in range(0, len(captions), BATCH):
        ids = torch.from_numpy(token_ids(models.tokenizer, captions[start : start + BATCH]))
        tokens = caption_tokens(models.clip, ids)
        nothing = caption_tokens(models.clip, empty).expand(len(ids), -1, -1)
        seen = None if hints is None else hints[start : start + BATCH]

        def predict(
            noisy: Tensor,
            step: Tensor,
            told: bool,
            tokens: Any = tokens,
            nothing: Any = nothing,
            seen: Any = seen,
        ) -> Tensor:
            given = tokens if told else nothing
            if seen is None:
                return models.sd(noisy, step, given).sample
            down, middle = models.controlnet(noisy, step, given, seen, return_dict=False)
            steered = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
            return models.sd(noisy, step, given, **steered).sample

        parts.append(_sampled(models, predict, len(ids), guidance, steps, _generator(seed, start)))
    return np.concatenate(parts)


@torch.no_grad()
def _sampled(
    models: Models, predict: Any, count: int, guidance: float, steps: int, rng: torch.Generator
) -> np.ndarray:
    scheduler = DDIMScheduler.from_config(new_scheduler().config)
    scheduler.set_timesteps(steps)
    latents = torch.randn((count, LATENT_CHANNELS, LATENT_SIZE, LATENT_SIZE), generator=rng)
    latents = latents.contiguous(memory_format=torch.channels_last)
    for step in scheduler.timesteps:
        told = predict(latents, step, True)
        if guidance != 1:
            untold = predict(latents, step, False)
            told = untold + guidance * (told - untold)
        latents = scheduler.step(told, step, latents).prev_sample
    return as_bytes(decode(models.vae, latents))


def as_bytes(pictures: Tensor) -> np.ndarray:
    """Pictures (n, 3, h, w) from 0 to 1 as uint8 (n, h, w, 3)."""
    return (pictures.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()


def _generator(seed: int, start: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + start)
