"""What keeps the layout of the picture: latents of an autoencoder, maps of a ConvNeXt."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fmri2img.errors import InputError
from fmri2img.features.loaded import LoadedModel
from fmri2img.features.loading import ModelExtractor, beside, load_model
from fmri2img.features.preparing import read_preparing, square
from fmri2img.hub import CONFIG, PROCESSOR, WEIGHTS


class Vae(ModelExtractor):
    """Latents of a diffusion model's autoencoder (Rombach et al. 2022, CVPR), (channels, size / 8, size / 8).

    The mean of the posterior, no draw from it; `scaled` shifts and multiplies it as the diffusion model wants it (by
    0.18215 in Stable Diffusion 1.x), which is the space that MindEye2's low-level branch predicts, at size 224.
    `size` 0 takes what the autoencoder's configuration names; pictures are cropped to squares.
    """

    kind: Literal["vae"] = "vae"
    size: int = Field(default=0, ge=0, le=2048)
    scaled: bool = True

    def files(self) -> tuple[str, ...]:
        weights = "diffusion_pytorch_model*.safetensors"
        return (beside(self.subfolder, CONFIG), beside(self.subfolder, weights))

    def prepared(self) -> dict[str, Any]:
        return square(self._size(self._config())).told()

    def _config(self) -> dict[str, Any]:
        from diffusers import AutoencoderKL

        try:
            return dict(AutoencoderKL.load_config(self.home() / self.subfolder, local_files_only=True))
        except (OSError, ValueError) as error:
            raise InputError(f"{self.home() / self.subfolder} is no autoencoder: {error}") from error

    def _size(self, config: dict[str, Any]) -> int:
        size, factor = self.size or int(config.get("sample_size", 512)), _factor(config)
        if size % factor:
            raise InputError(
                f"size {size}: {self.model} makes pictures {factor} times smaller, use a multiple of it"
            )
        return size

    @property
    def shape(self) -> tuple[int, ...]:
        config = self._config()
        edge = self._size(config) // _factor(config)
        return (int(config.get("latent_channels", 4)), edge, edge)

    def load(
        self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, *, batch: int = 64
    ) -> LoadedModel:
        from diffusers import AutoencoderKL

        config = self._config()
        if config.get("force_upcast", False) and dtype == torch.float16:
            dtype = torch.float32  # its activations overflow; SDXL's says so itself
        model = load_model(AutoencoderKL, self.home() / self.subfolder, device, dtype)
        prepare = square(self._size(config))
        factor, shift = model.config.scaling_factor, model.config.shift_factor or 0.0

        def rows_of(picture: np.ndarray, captions: Sequence[str]) -> Tensor:
            return prepare(picture)[None]

        def forward(rows: Tensor) -> Tensor:
            mean = model.encode(rows.to(dtype)).latent_dist.mode()
            return (mean - shift) * factor if self.scaled else mean

        return LoadedModel(self.shape, rows_of=rows_of, forward=forward, batch=batch, device=device)


class ConvNext(ModelExtractor):
    """The map after a stage of a ConvNeXt (Liu et al. 2022, CVPR), (channels, height, width).

    Stage s of a 224-pixel picture has 224 / 2^(s + 1) pixels an edge: 7 × 7 after stage 4. MindEye2's low-level
    teacher is VICRegL's ConvNeXt-XL through its projector (49 × 512); weights of that come as `imported` features.
    """

    kind: Literal["convnext"] = "convnext"
    stage: Literal[1, 2, 3, 4] = 4

    def files(self) -> tuple[str, ...]:
        names = (CONFIG, WEIGHTS, PROCESSOR)
        return tuple(beside(self.subfolder, name) for name in names)

    def prepared(self) -> dict[str, Any]:
        return self._preparing().told()

    def _preparing(self) -> Any:
        found = read_preparing(self.home() / self.subfolder / PROCESSOR)
        if found.crop is None and found.size is None:
            raise InputError(f"{self.home()} does not say which size pictures are cropped to: set crop_size")
        return found

    @property
    def shape(self) -> tuple[int, ...]:
        from transformers import ConvNextConfig

        try:
            config = ConvNextConfig.from_pretrained(self.home() / self.subfolder, local_files_only=True)
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"{self.home() / self.subfolder} is no ConvNeXt: {error}") from error
        found = self._preparing()
        smaller = config.patch_size * 2 ** (self.stage - 1)
        height, width = (edge // smaller for edge in found.crop or found.size or ())
        return ((config.hidden_sizes or [])[self.stage - 1], height, width)

    def load(
        self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, *, batch: int = 64
    ) -> LoadedModel:
        from transformers import ConvNextModel

        model = load_model(ConvNextModel, self.home() / self.subfolder, device, dtype)
        del model.encoder.stages[self.stage :]
        prepare = self._preparing()

        def rows_of(picture: np.ndarray, captions: Sequence[str]) -> Tensor:
            return prepare(picture)[None]

        def forward(rows: Tensor) -> Tensor:
            return model.encoder(model.embeddings(rows.to(dtype))).last_hidden_state

        return LoadedModel(self.shape, rows_of=rows_of, forward=forward, batch=batch, device=device)


def _factor(config: dict[str, Any]) -> int:
    """How many times an autoencoder makes an edge smaller."""
    return int(2 ** (len(config.get("block_out_channels", (64,))) - 1))
