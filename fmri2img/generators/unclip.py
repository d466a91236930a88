"""unCLIP: diffusion models that are told of an image embedding. Stable unCLIP, and the SDXL unCLIP of MindEye2."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from fmri2img.errors import InputError
from fmri2img.generators.denoising import Conditions
from fmri2img.generators.diffusion import DiffusionGenerator, LoadedDiffusion
from fmri2img.generators.samplers import make_scheduler
from fmri2img.models.diffusion import draw_noise


class UnclipGenerator(DiffusionGenerator):
    """A picture of a predicted image embedding (Ramesh et al. 2022). The folder's UNet says which of two kinds it is.

    Stable unCLIP: `image` is CLIP's projected embedding (width,); noise of `noise_level` is added to it, and it enters
    beside the time with the level; `prompt` is read too, most often empty. Ours is diffusers' own arithmetic.

    SDXL unCLIP (MindEye2, Scotti et al. 2024, section 2.4): `image` is a grid of tokens (256, 1664) for
    cross-attention, and the sizes that SDXL reads are fixed. As published: euler, trailing, 38 steps, guidance 5,
    offset 0.04, negative_tokens noise, levels [0.8, 0.2].
    """

    kind: Literal["unclip"] = "unclip"
    image: str
    guidance: float = Field(default=10.0, ge=1)
    noise_level: int = Field(default=0, ge=0, description="step of the noise schedule of embeddings")
    length: Literal["predicted", "typical"] = Field(
        default="predicted",
        description="typical: embeddings are stretched to the length that real ones have, counted in the standard "
        "deviations of the folder's image_normalizer; regression predicts shorter ones",
    )
    negative_tokens: Literal["zeros", "noise"] = Field(
        default="zeros", description="guided away from: tokens only"
    )

    def own_spaces(self) -> list[str | None]:
        return [self.image]

    def load(
        self, device: torch.device | str, dtype: torch.dtype = torch.float32
    ) -> "LoadedUnclip | LoadedTokenUnclip":
        from fmri2img.generators.folders import ModelFolder

        told = ModelFolder(self.model, ("unet/config.json",)).json("unet/config.json")
        if told.get("class_embed_type") == "projection":
            return LoadedUnclip(self, device, dtype)
        if told.get("addition_embed_type") == "text_time":
            return LoadedTokenUnclip(self, device, dtype)
        raise InputError(
            f"{self.model} is no unCLIP: its UNet reads neither an embedding as class label nor SDXL's sizes. Give a "
            "Stable unCLIP folder, or a converted SDXL unCLIP"
        )


class LoadedUnclip(LoadedDiffusion):
    """Stable unCLIP at work."""

    needs = (
        "unet",
        "vae",
        "scheduler",
        "text_encoder",
        "tokenizer",
        "image_normalizer",
        "image_noising_scheduler",
    )
    config: UnclipGenerator

    def __init__(self, config: UnclipGenerator, device: torch.device | str, dtype: torch.dtype) -> None:
        from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import (
            StableUnCLIPImageNormalizer,
        )

        super().__init__(config, device, dtype)
        normaliser = self.folder.model(
            "image_normalizer", StableUnCLIPImageNormalizer, self.device, torch.float32
        )
        self.mean, self.std = normaliser.mean.detach(), normaliser.std.detach()
        stored = self.folder.json("image_noising_scheduler/scheduler_config.json")
        self.noising = make_scheduler(stored, None, None)
        levels = int(self.noising.config.num_train_timesteps)
        if config.noise_level >= levels:
            raise InputError(f"noise_level {config.noise_level} must be below {levels} for {config.model}")
        width = int(self.unet.config.projection_class_embeddings_input_dim)
        if width != 2 * self.mean.shape[-1]:
            raise InputError(
                f"{config.model}: its UNet reads {width} numbers, its image_normalizer makes "
                f"{2 * self.mean.shape[-1]}: they are of different models"
            )
        self.told, self.empty = self.words()

    def wants(self) -> dict[str, tuple[int, ...]]:
        return super().wants() | {self.config.image: (int(self.mean.shape[-1]),)}

    def conditions(
        self, features: Mapping[str, Tensor], generators: Sequence[torch.Generator]
    ) -> tuple[Conditions, Conditions]:
        from diffusers.models.embeddings import get_timestep_embedding

        image = features[self.config.image].to(self.device, torch.float32)
        rows, width = image.shape
        z = (image - self.mean) / self.std
        if self.config.length == "typical":
            z = z * (width**0.5 / z.norm(dim=1, keepdim=True).clamp(min=1e-6))
        level = torch.full((rows,), self.config.noise_level, device=self.device)
        noise = draw_noise(generators, (width,), self.device)
        noised = self.noising.add_noise(z, noise, level) * self.std + self.mean
        told = get_timestep_embedding(level, width, flip_sin_to_cos=True, downscale_freq_shift=0)
        labels = torch.cat([noised, told], dim=1).to(self.dtype)
        return (
            Conditions(self.told.tokens.expand(rows, -1, -1), labels),
            Conditions(self.empty.tokens.expand(rows, -1, -1), torch.zeros_like(labels)),
        )


class LoadedTokenUnclip(LoadedDiffusion):
    """An SDXL unCLIP at work: tokens in cross-attention, and sizes that are always those of its training."""

    config: UnclipGenerator

    def __init__(self, config: UnclipGenerator, device: torch.device | str, dtype: torch.dtype) -> None:
        super().__init__(config, device, dtype)
        told = self.unet.config
        sizes = int(told.projection_class_embeddings_input_dim) // int(told.addition_time_embed_dim)
        if sizes != 4:
            raise InputError(
                f"{config.model}: its UNet reads {sizes} sizes and text, not the 4 of an SDXL unCLIP: "
                "it is another SDXL"
            )
        if config.prompt or config.negative or config.noise_level or config.length != "predicted":
            raise InputError(
                f"{config.model} reads no words, no noise_level and no length: leave prompt, negative, noise_level and "
                "length out"
            )

    def check(self, shapes: Mapping[str, Sequence[int]]) -> None:
        from fmri2img.generators.protocol import shape_of

        shape = shape_of(shapes, self.config.image)
        width = int(self.unet.config.cross_attention_dim)
        if len(shape) != 2 or shape[1] != width:
            raise InputError(
                f"the generator unclip with {self.config.model} takes tokens (n, {width}), "
                f"{self.config.image} is {shape}"
            )
        super().check(shapes)

    def conditions(
        self, features: Mapping[str, Tensor], generators: Sequence[torch.Generator]
    ) -> tuple[Conditions, Conditions]:
        tokens = self.feature(features, self.config.image)
        empty = torch.zeros_like(tokens)
        if self.config.negative_tokens == "noise":
            empty = draw_noise(generators, tokens.shape[1:], self.device).to(self.dtype)
        side = float(self.size)
        added = {
            "text_embeds": tokens.new_zeros(len(tokens), 0),
            "time_ids": tokens.new_tensor([side, side, 0.0, 0.0]).expand(len(tokens), -1),
        }
        return Conditions(tokens, added=added), Conditions(empty, added=added)
