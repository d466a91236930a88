"""An IP-Adapter beside Stable Diffusion: a predicted image embedding enters by attention layers of its own."""

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from fmri2img.errors import InputError
from fmri2img.generators.denoising import Conditions
from fmri2img.generators.folders import ModelFolder
from fmri2img.generators.stable import LoadedText, TextGenerator


class IpAdapterGenerator(TextGenerator):
    """Stable Diffusion with an IP-Adapter (Ye et al. 2023) that reads a predicted image embedding.

    A plain adapter reads CLIP's projected embedding (width,), a "plus" adapter the last but one hidden states of the
    image tower (tokens, width), and needs that tower for what it is guided away from: those of a plain grey picture.
    """

    kind: Literal["ip-adapter"] = "ip-adapter"
    image: str
    adapter: str = Field(description="folder or hub name that holds the adapter, such as h94/IP-Adapter")
    weights: str = Field(default="models/ip-adapter_sd15.safetensors", pattern=r"\.safetensors$")
    scale: float = Field(default=1.0, ge=0, le=2, description="weight of the picture beside the words")

    def own_spaces(self) -> list[str | None]:
        return [self.image, *super().own_spaces()]

    def load(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> "LoadedIpAdapter":
        return LoadedIpAdapter(self, device, dtype)


class LoadedIpAdapter(LoadedText):
    """The `ip-adapter` generator at work."""

    config: IpAdapterGenerator

    def __init__(self, config: IpAdapterGenerator, device: torch.device | str, dtype: torch.dtype) -> None:
        from diffusers.models.embeddings import ImageProjection, IPAdapterPlusImageProjection

        super().__init__(config, device, dtype)
        if self.unet.encoder_hid_proj is None:
            raise InputError(f"{config.adapter}/{config.weights} holds no IP-Adapter")
        layer = self.unet.encoder_hid_proj.image_projection_layers[0]
        if isinstance(layer, ImageProjection):
            self.image_shape: tuple[int, ...] = (int(layer.image_embeds.in_features),)
            self.empty_image = torch.zeros(1, *self.image_shape, device=self.device, dtype=dtype)
        elif isinstance(layer, IPAdapterPlusImageProjection):
            self.empty_image = self._empty_image()
            self.image_shape = tuple(self.empty_image.shape[1:])
        else:
            raise InputError(
                f"{config.adapter}/{config.weights} is a {type(layer).__name__}: bring a plain or a plus IP-Adapter"
            )

    def read_unet(self) -> Any:
        from diffusers.loaders.ip_adapter import IPAdapterMixin

        unet, config = super().read_unet(), self.config
        self.adapter_folder = ModelFolder(config.adapter, (config.weights,), also=(self._tower,))

        class Carrier(IPAdapterMixin):
            """What diffusers' own loader needs of a pipeline."""

            unet_name = "unet"
            unet: Any

        carrier = Carrier()
        carrier.unet = unet
        try:
            carrier.load_ip_adapter(
                str(self.adapter_folder.path),
                subfolder=str(PurePosixPath(config.weights).parent),
                weight_name=PurePosixPath(config.weights).name,
                image_encoder_folder=None,
                local_files_only=True,
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise InputError(
                f"{config.adapter}/{config.weights} is no IP-Adapter for {config.model}: {str(error).splitlines()[0]}"
            ) from error
        carrier.set_ip_adapter_scale(config.scale)
        self.adapter_folder.used.append(self.adapter_folder.path / config.weights)
        return unet.eval().requires_grad_(False)

    @property
    def _tower(self) -> str:
        return str(PurePosixPath(self.config.weights).parent / "image_encoder")

    @torch.no_grad()
    def _empty_image(self) -> Tensor:
        from transformers import CLIPVisionModelWithProjection

        if not self.adapter_folder.has(self._tower):
            raise InputError(
                f"{self.config.adapter}/{self.config.weights} reads hidden states of an image tower: "
                f"bring {self._tower} too"
            )
        tower = self.adapter_folder.model(self._tower, CLIPVisionModelWithProjection, self.device, self.dtype)
        side = int(tower.config.image_size)
        picture = torch.zeros(1, 3, side, side, device=self.device, dtype=self.dtype)
        return tower(picture, output_hidden_states=True).hidden_states[-2]

    def wants(self) -> dict[str, tuple[int, ...]]:
        return super().wants() | {self.config.image: self.image_shape}

    def conditions(
        self, features: Mapping[str, Tensor], generators: Sequence[torch.Generator]
    ) -> tuple[Conditions, Conditions]:
        told, empty = super().conditions(features, generators)
        image = self.feature(features, self.config.image)
        return self._with(told, image), self._with(empty, self.empty_image.expand_as(image))

    def _with(self, words: Conditions, image: Tensor) -> Conditions:
        return Conditions(words.context, added={**words.added, "image_embeds": [image[:, None]]})

    def provenance(self) -> dict[str, Any]:
        return super().provenance() | self.adapter_folder.digests()
