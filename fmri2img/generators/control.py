"""A ControlNet beside Stable Diffusion: another generator's picture gives the low-level structure."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field
from torch import Tensor

from fmri2img.errors import InputError
from fmri2img.generators.denoising import Structure
from fmri2img.generators.diffusion import resized, unique
from fmri2img.generators.folders import ModelFolder
from fmri2img.generators.protocol import LoadedGenerator
from fmri2img.generators.stable import LoadedText, TextGenerator

if TYPE_CHECKING:
    from fmri2img.generators import AnyGenerator


class ControlNetGenerator(TextGenerator):
    """Stable Diffusion with a ControlNet (Zhang et al. 2023, ICCV) that follows the picture of `structure`.

    `structure` is most often `pixels` or `vae`. `control` is the folder or hub name of a ControlNetModel made for
    `model`, which decides what such a picture must look like: blurred colours, edges, depth.
    """

    kind: Literal["controlnet"] = "controlnet"
    control: str
    structure: "AnyGenerator"
    scale: float = Field(default=1.0, ge=0, le=2, description="weight of the ControlNet's residuals")

    @property
    def spaces(self) -> list[str]:
        return unique([*super().spaces, *self.structure.spaces])

    def load(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> "LoadedControlNet":
        return LoadedControlNet(self, device, dtype)


class LoadedControlNet(LoadedText):
    """The `controlnet` generator at work."""

    config: ControlNetGenerator

    def __init__(self, config: ControlNetGenerator, device: torch.device | str, dtype: torch.dtype) -> None:
        from diffusers import ControlNetModel

        super().__init__(config, device, dtype)
        self.control_folder = ModelFolder(config.control, lone="controlnet")
        self.control = self.control_folder.model(
            self.control_folder.lone, ControlNetModel, self.device, dtype
        )
        self.low: LoadedGenerator = config.structure.load(device, dtype)
        if self.control.config.cross_attention_dim != self.unet.config.cross_attention_dim:
            raise InputError(
                f"{config.control} was made for another model than {config.model}: their text widths are "
                f"{self.control.config.cross_attention_dim} and {self.unet.config.cross_attention_dim}"
            )

    def nested(self) -> list[LoadedGenerator]:
        return [*super().nested(), self.low]

    def structure(self, features: Mapping[str, Tensor], generators: Sequence[torch.Generator]) -> Structure:
        picture = resized(self.low.generate(features, generators), self.size)
        return Structure(self.control, picture, self.config.scale)

    def provenance(self) -> dict[str, str]:
        return super().provenance() | self.control_folder.digests()
