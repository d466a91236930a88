"""An autoencoder between latents and pictures, in chunks of fixed size; and the `vae` generator, which is just that."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from fmri2img.errors import InputError
from fmri2img.generators.folders import ModelFolder
from fmri2img.generators.protocol import shape_of, shapes_of


class Autoencoder:
    """A diffusers AutoencoderKL. Latents are scaled, as diffusion models see them: scaling_factor times the mean."""

    def __init__(self, model: Any, *, chunk: int, levels: tuple[float, float] = (0.5, 0.5)) -> None:
        self.model, self.chunk, self.levels = model, chunk, levels
        self.factor = 2 ** (len(model.config.block_out_channels) - 1)
        self.channels = int(model.config.latent_channels)

    @classmethod
    def read(
        cls, folder: ModelFolder, part: str, device: torch.device, dtype: torch.dtype, **settings: Any
    ) -> "Autoencoder":
        """Reads subfolder `part`. One whose activations overflow float16 (`force_upcast`, SDXL) computes in float32."""
        from diffusers import AutoencoderKL

        if dtype == torch.float16 and folder.json(f"{part}/config.json").get("force_upcast"):
            dtype = torch.float32
        model = folder.model(part, AutoencoderKL, device, dtype)
        if device.type == "cuda":
            model = model.to(memory_format=torch.channels_last)
        return cls(model, **settings)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (B, C, h, w) to pictures (B, 3, h x factor, w x factor) float32 in [0, 1]."""
        scale, shift = (
            self.model.config.scaling_factor,
            getattr(self.model.config, "shift_factor", None) or 0.0,
        )
        low, high = self.levels
        parts = []
        for part, kept in self._chunks(latents / scale + shift):
            decoded = self.model.decode(part.to(self.model.device, self.model.dtype), return_dict=False)[0]
            parts.append((decoded[:kept].float() * low + high).clamp(0, 1))
        return torch.cat(parts)

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [0, 1] to the scaled mean of their latents (B, C, h, w) float32."""
        scale, shift = (
            self.model.config.scaling_factor,
            getattr(self.model.config, "shift_factor", None) or 0.0,
        )
        parts = []
        for part, kept in self._chunks(pictures * 2 - 1):
            found = self.model.encode(part.to(self.model.device, self.model.dtype)).latent_dist.mode()
            parts.append((found[:kept].float() - shift) * scale)
        return torch.cat(parts)

    def _chunks(self, rows: Tensor) -> list[tuple[Tensor, int]]:
        """Chunks of one size, the last filled up, so that each row is computed in the same shape; and rows to keep."""
        if len(rows) <= self.chunk:
            return [(rows, len(rows))]
        chunks = []
        for part in rows.split(self.chunk):
            full = torch.cat([part, part[:1].expand(self.chunk - len(part), *part.shape[1:])])
            chunks.append((full, len(part)))
        return chunks


class VaeGenerator(BaseModel):
    """Predicted autoencoder latents (B, C, h, w), decoded: blurry, but right in layout and colour.

    This is the low-level picture of MindEye (Scotti et al. 2023, section 2.3) and of Takagi and Nishimoto (2023).
    `model` is a folder or hub name of an AutoencoderKL, or one that holds it in its subfolder vae.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["vae"] = "vae"
    model: str
    latents: str = Field(description="the space of the scaled latents")
    decode_batch: int = Field(default=8, ge=1)

    @property
    def spaces(self) -> list[str]:
        return [self.latents]

    def load(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> "LoadedVae":
        folder = ModelFolder(self.model, lone="vae")
        read = Autoencoder.read(folder, folder.lone, torch.device(device), dtype, chunk=self.decode_batch)
        return LoadedVae(self, folder, read)


class LoadedVae:
    """The `vae` generator at work."""

    def __init__(self, config: VaeGenerator, folder: ModelFolder, autoencoder: Autoencoder) -> None:
        self.config, self.folder, self.autoencoder = config, folder, autoencoder

    @property
    def spaces(self) -> list[str]:
        return self.config.spaces

    def check(self, shapes: Mapping[str, Sequence[int]]) -> None:
        shape = shape_of(shapes, self.config.latents)
        if len(shape) != 3 or shape[0] != self.autoencoder.channels:
            raise InputError(
                f"{self.config.model} decodes latents ({self.autoencoder.channels}, h, w), "
                f"{self.config.latents} is {shape}"
            )

    def generate(self, features: Mapping[str, Tensor], generators: Sequence[torch.Generator]) -> Tensor:
        self.check(shapes_of(features))
        return self.autoencoder.decode(features[self.config.latents].float())

    def provenance(self) -> dict[str, Any]:
        return self.folder.digests()
