"""Stable Diffusion 1.x, 2.x and XL: told by predicted prompt embeddings or by words, from noise or from a picture."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from fmri2img.errors import InputError
from fmri2img.generators.denoising import Conditions
from fmri2img.generators.diffusion import DiffusionGenerator, LoadedDiffusion
from fmri2img.generators.texts import Words


class TextGenerator(DiffusionGenerator):
    """Settings of generators on Stable Diffusion: predicted prompt embeddings `text`, or the words of `prompt`."""

    text: str | None = Field(default=None, description="space of prompt embeddings (tokens, width)")
    pooled: str | None = Field(default=None, description="space of SDXL's pooled prompt embedding (width,)")

    @model_validator(mode="after")
    def _one_prompt(self) -> "TextGenerator":
        if self.text and self.prompt:
            raise ValueError(f"it reads the space {self.text} and the words {self.prompt!r}: leave one out")
        if self.pooled and not self.text:
            raise ValueError(f"pooled {self.pooled} goes with prompt embeddings: name their space as text")
        return self

    def own_spaces(self) -> list[str | None]:
        return [self.text, self.pooled]


class SdGenerator(TextGenerator):
    """Stable Diffusion on predicted prompt embeddings; with `latents` and `strength`, image-to-image.

    Takagi and Nishimoto (2023, CVPR) predict `text` from higher and `latents` from early visual cortex: DDIM, 50
    steps, strength 0.8, guidance 5.
    """

    kind: Literal["sd"] = "sd"
    text: str

    def load(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> "LoadedText":
        return LoadedText(self, device, dtype)


class RefineGenerator(TextGenerator):
    """Another generator's picture, made sharper by image-to-image with a caption.

    MindEye2 (Scotti et al. 2024) gives its unCLIP pictures to an SDXL with the predicted caption: 25 steps, the last 13
    taken (strength 0.52), guidance 5. The caption comes as predicted prompt embeddings, or as fixed words.
    """

    kind: Literal["refine"] = "refine"
    strength: float = Field(default=0.5, ge=0, le=1)
    steps: int = Field(default=25, ge=1, le=1000)
    guidance: float = Field(default=5.0, ge=1)

    @model_validator(mode="after")
    def _has_base(self) -> "RefineGenerator":
        if self.base is None:
            raise ValueError("refine needs a base, the generator whose picture it refines")
        return self

    def load(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> "LoadedText":
        return LoadedText(self, device, dtype)


class LoadedText(LoadedDiffusion):
    """A Stable Diffusion model at work."""

    also = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "model_index.json")
    config: TextGenerator

    def __init__(self, config: TextGenerator, device: torch.device | str, dtype: torch.dtype) -> None:
        super().__init__(config, device, dtype)
        kind = self.unet.config.addition_embed_type
        if kind not in (None, "text_time"):
            raise InputError(
                f"{config.model}: its UNet's addition_embed_type is {kind}, {config.kind} takes text_time"
            )
        self.large = kind == "text_time"
        if self.large and config.text and not config.pooled:
            raise InputError(
                f"{config.model} is an SDXL, which reads a pooled prompt embedding beside {config.text}: name its "
                "space as pooled"
            )
        if config.pooled and not self.large:
            raise InputError(f"{config.model} reads no pooled prompt embedding: leave pooled out")
        self.told, self.empty = self.words()
        zeros = self.large and self.folder.json("model_index.json").get("force_zeros_for_empty_prompt", False)
        if zeros and not config.negative:
            assert self.empty.pooled is not None
            self.empty = Words(torch.zeros_like(self.empty.tokens), torch.zeros_like(self.empty.pooled))

    def wants(self) -> dict[str, tuple[int, ...]]:
        wanted = super().wants()
        if self.config.text:
            wanted[self.config.text] = tuple(self.empty.tokens.shape[1:])
        if self.config.pooled and self.empty.pooled is not None:
            wanted[self.config.pooled] = tuple(self.empty.pooled.shape[1:])
        return wanted

    def conditions(
        self, features: Mapping[str, Tensor], generators: Sequence[torch.Generator]
    ) -> tuple[Conditions, Conditions]:
        rows = len(generators)
        told = self.told
        if self.config.text:
            pooled = self.feature(features, self.config.pooled) if self.config.pooled else None
            told = Words(self.feature(features, self.config.text), pooled)
        return self._told(told, rows), self._told(self.empty, rows)

    def _told(self, words: Words, rows: int) -> Conditions:
        tokens = words.tokens.expand(rows, -1, -1)
        if words.pooled is None:
            return Conditions(tokens)
        # Podell et al. 2023, section 2.2: original size, crop, size wanted.
        side = float(self.size)
        sizes = torch.tensor([side, side, 0.0, 0.0, side, side], device=self.device, dtype=self.dtype)
        return Conditions(
            tokens, added={"text_embeds": words.pooled.expand(rows, -1), "time_ids": sizes.expand(rows, -1)}
        )
