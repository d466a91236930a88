"""The one denoising loop of every diffusion generator: conditions, guidance, sampler, a start, a structure.

B items, C latent channels, h and w of the latents. The UNet computes in the dtype it was loaded in; latents and the
sampler stay float32.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fmri2img.generators.samplers import step_settings
from fmri2img.models.diffusion import draw_noise

Added = Mapping[str, Tensor | list[Tensor]]


@dataclass(frozen=True)
class Conditions:
    """What the UNet is told about B pictures beside latents and time."""

    context: Tensor  # (B, tokens, width), for cross-attention
    labels: Tensor | None = None  # (B, width), Stable unCLIP's image embedding with its noise level
    added: Added = field(
        default_factory=dict
    )  # SDXL's text_embeds and time_ids, an IP-Adapter's image_embeds

    def beside(self, other: "Conditions") -> "Conditions":
        """Both in one batch, these first."""
        labels = None
        if self.labels is not None and other.labels is not None:
            labels = torch.cat([self.labels, other.labels])
        added = {name: _beside(value, other.added[name]) for name, value in self.added.items()}
        return Conditions(torch.cat([self.context, other.context]), labels, added)


def _beside(first: Tensor | list[Tensor], second: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return torch.cat([first, second])
    return [torch.cat([a, b]) for a, b in zip(first, second, strict=True)]


@dataclass(frozen=True)
class Structure:
    """A ControlNet with the picture it follows, (B, 3, height, width) in [0, 1], and how strongly."""

    model: Any
    picture: Tensor
    scale: float


@dataclass(frozen=True)
class Schedule:
    """How to sample. `strength` is the share of the steps that are taken from a start; `offset` adds to the first
    noise a value common to all pixels of an item, which lets pictures be very dark or bright (Guttenberg 2023)."""

    steps: int
    guidance: float
    strength: float = 1.0
    eta: float = 0.0
    offset: float = 0.0

    @property
    def taken(self) -> int:
        return min(int(self.steps * self.strength), self.steps)


@torch.no_grad()
def denoise(
    unet: Any,
    scheduler: Any,
    schedule: Schedule,
    told: Conditions,
    empty: Conditions,
    generators: Sequence[torch.Generator],
    *,
    shape: Sequence[int],
    start: Tensor | None = None,
    structure: Structure | None = None,
) -> Tensor:
    """Latents (B, *shape) float32 sampled under the conditions `told`.

    Guidance g > 1 is classifier-free (Ho and Salimans 2022): eps = eps(empty) + g (eps(told) - eps(empty)), both in
    one batch of 2 B. From a `start` (B, *shape) the last `schedule.taken` steps are run (SDEdit, Meng et al. 2022);
    strength 0 gives the start back.
    """
    device = told.context.device
    if start is not None and schedule.strength == 0:
        return start.to(device, torch.float32)
    scheduler.set_timesteps(schedule.steps, device=device)
    times = scheduler.timesteps
    noise = draw_noise(generators, shape, device)
    if schedule.offset:
        noise = noise + schedule.offset * draw_noise(generators, [1] * len(shape), device)
    if start is None:
        latents = noise * scheduler.init_noise_sigma
    else:
        skipped = schedule.steps - schedule.taken
        times = times[skipped * scheduler.order :]
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(skipped * scheduler.order)
        latents = scheduler.add_noise(start.to(device, torch.float32), noise, times[:1].repeat(len(noise)))
    guided = schedule.guidance > 1
    conditions = empty.beside(told) if guided else told
    settings = step_settings(scheduler, generators, schedule.eta)
    for time in times:
        both = torch.cat([latents, latents]) if guided else latents
        predicted = _predict(unet, scheduler.scale_model_input(both, time), time, conditions, structure)
        if guided:
            without, with_conditions = predicted.chunk(2)
            predicted = without + schedule.guidance * (with_conditions - without)
        latents = scheduler.step(predicted, time, latents, **settings, return_dict=False)[0]
    return latents


def _predict(
    unet: Any, latents: Tensor, time: Tensor, conditions: Conditions, structure: Structure | None
) -> Tensor:
    """The UNet's output (rows of `latents`, ...) as float32."""
    dtype = conditions.context.dtype
    latents = latents.to(dtype)
    told: dict[str, Any] = {"encoder_hidden_states": conditions.context}
    if conditions.labels is not None:
        told["class_labels"] = conditions.labels
    if conditions.added:
        told["added_cond_kwargs"] = dict(conditions.added)
    if structure is not None:
        picture = structure.picture.to(dtype)
        down, middle = structure.model(
            latents,
            time,
            controlnet_cond=picture.repeat(len(latents) // len(picture), 1, 1, 1),
            conditioning_scale=structure.scale,
            return_dict=False,
            **told,
        )
        told |= {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
    return unet(latents, time, return_dict=False, **told)[0].float()
