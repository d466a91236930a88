"""Versatile Diffusion, dual guided: image tokens and text tokens in two UNets whose attention outputs are mixed."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from fmri2img.errors import InputError
from fmri2img.generators.denoising import Conditions
from fmri2img.generators.diffusion import DiffusionGenerator, LoadedDiffusion
from fmri2img.generators.texts import token_ids


class VersatileGenerator(DiffusionGenerator):
    """Versatile Diffusion (Xu et al. 2023, ICCV) on predicted CLIP tokens.

    `image` holds the projected tokens of CLIP's image tower (257, 768), `text` those of its text tower (77, 768), each
    divided by the norm of the picture's (the caption's) embedding, as Versatile Diffusion was trained. `text_share` is
    the weight of the text's attention, the picture has the rest.

    Brain-Diffuser (Ozcelik and VanRullen 2023): ddim, 50 steps, strength 0.75, guidance 7.5, text_share 0.4. MindEye
    (Scotti et al. 2023): unipc, 20 steps, strength 0.85, guidance 3.5, text_share 0, empty zeros, best of 16.
    """

    kind: Literal["versatile"] = "versatile"
    image: str
    text: str | None = Field(default=None, description="space of text tokens; without it text_share is 0")
    text_share: float = Field(default=0.0, ge=0, le=1)
    empty: Literal["encoded", "zeros"] = Field(
        default="encoded", description="guided away from: an empty caption and a black picture, or zeros"
    )

    unet_part: ClassVar[str] = "image_unet"

    @model_validator(mode="after")
    def _text_is_read(self) -> "VersatileGenerator":
        if self.text_share and not self.text:
            raise ValueError(
                f"text_share {self.text_share} needs a space of text tokens: name it as text, or set 0"
            )
        if self.prompt or self.negative:
            raise ValueError("versatile reads no words: leave prompt and negative out")
        return self

    def own_spaces(self) -> list[str | None]:
        return [self.image, self.text]

    def load(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> "LoadedVersatile":
        return LoadedVersatile(self, device, dtype)


class LoadedVersatile(LoadedDiffusion):
    """The `versatile` generator at work."""

    needs = (
        "image_unet",
        "text_unet",
        "vae",
        "scheduler",
        "text_encoder",
        "tokenizer",
        "image_encoder",
        "image_feature_extractor",
    )
    config: VersatileGenerator

    def __init__(self, config: VersatileGenerator, device: torch.device | str, dtype: torch.dtype) -> None:
        super().__init__(config, device, dtype)
        self.no_text, self.no_image = self._empty_text(), self._empty_image()
        for module in self.unet.modules():
            if isinstance(module, TwoTransformers):
                module.text_share, module.text_tokens = config.text_share, self.no_text.shape[1]
        if config.empty == "zeros":
            self.no_text, self.no_image = torch.zeros_like(self.no_text), torch.zeros_like(self.no_image)

    def read_unet(self) -> Any:
        """The image UNet, each of whose transformers has that of the text UNet at its side."""
        from diffusers.models.transformers.transformer_2d import Transformer2DModel
        from diffusers.pipelines.deprecated.versatile_diffusion.modeling_text_unet import (
            UNetFlatConditionModel,
        )

        unet = super().read_unet()
        text = self.folder.model("text_unet", UNetFlatConditionModel, self.device, self.dtype)
        for name, module in list(unet.named_modules()):
            if isinstance(module, Transformer2DModel):
                parent, _, place = name.rpartition(".")
                try:
                    beside = text.get_submodule(parent)[int(place)]
                except (AttributeError, IndexError) as error:
                    raise InputError(
                        f"{self.config.model}: its text_unet has no {name}, its image_unet has"
                    ) from error
                unet.get_submodule(parent)[int(place)] = TwoTransformers(module, beside)
        return unet

    @torch.no_grad()
    def _empty_text(self) -> Tensor:
        from transformers import CLIPTextModelWithProjection

        model = self.folder.model("text_encoder", CLIPTextModelWithProjection, self.device, self.dtype)
        ids = token_ids(self.folder, "tokenizer", [""], model.config.max_position_embeddings)
        told = model(ids.to(self.device))
        return model.text_projection(told.last_hidden_state) / told.text_embeds[:, None].norm(
            dim=-1, keepdim=True
        )

    @torch.no_grad()
    def _empty_image(self) -> Tensor:
        from transformers import CLIPVisionModelWithProjection

        model = self.folder.model("image_encoder", CLIPVisionModelWithProjection, self.device, self.dtype)
        told = self.folder.json("image_feature_extractor/preprocessor_config.json")
        side = int(model.config.image_size)
        # diffusers asks for grey 0.5 of 255, which is black but for half a level; ours is the same.
        level = 0.5 * float(told.get("rescale_factor", 1 / 255))
        mean, std = (torch.tensor(told[name]).view(1, 3, 1, 1) for name in ("image_mean", "image_std"))
        picture = ((level - mean) / std).expand(1, 3, side, side).to(self.device, self.dtype)
        tokens = model.vision_model.post_layernorm(model(picture).last_hidden_state)
        tokens = model.visual_projection(tokens)
        return tokens / tokens[:, :1].norm(dim=-1, keepdim=True)

    def wants(self) -> dict[str, tuple[int, ...]]:
        wanted = super().wants() | {self.config.image: tuple(self.no_image.shape[1:])}
        if self.config.text:
            wanted[self.config.text] = tuple(self.no_text.shape[1:])
        return wanted

    def conditions(
        self, features: Mapping[str, Tensor], generators: Sequence[torch.Generator]
    ) -> tuple[Conditions, Conditions]:
        rows = len(generators)
        text = self.no_text.expand(rows, -1, -1)
        told = self.feature(features, self.config.text) if self.config.text else text
        image = self.feature(features, self.config.image)
        empty = torch.cat([text, self.no_image.expand(rows, -1, -1)], dim=1)
        return Conditions(torch.cat([told, image], dim=1)), Conditions(empty)


class TwoTransformers(torch.nn.Module):
    """The image UNet's and the text UNet's transformer at one place: what each adds to its input, in fixed shares.

    diffusers' own DualTransformer2DModel takes no encoder_attention_mask, which its UNet always passes on since.
    """

    def __init__(self, image: torch.nn.Module, text: torch.nn.Module) -> None:
        super().__init__()
        self.image, self.text = image, text
        self.text_share, self.text_tokens = 0.0, 0

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor, **settings: Any) -> tuple[Tensor]:
        """hidden_states (B, channels, h, w); encoder_hidden_states the text's tokens, then the picture's."""
        settings["return_dict"] = False
        text, image = encoder_hidden_states.tensor_split([self.text_tokens], dim=1)
        told = self.text(hidden_states, encoder_hidden_states=text, **settings)[0] - hidden_states
        seen = self.image(hidden_states, encoder_hidden_states=image, **settings)[0] - hidden_states
        return (told * self.text_share + seen * (1 - self.text_share) + hidden_states,)
