"""What CLIP's image tower makes of pictures: its embedding, its tokens, its layers, and OpenCLIP's tokens."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fmri2img.errors import InputError
from fmri2img.features.loaded import LoadedModel
from fmri2img.features.loading import ModelExtractor, beside, load_model
from fmri2img.features.preparing import IMAGENET_MEAN, IMAGENET_STD, Preparing, read_preparing
from fmri2img.hub import CONFIG, PROCESSOR, WEIGHTS


class ImageTower(ModelExtractor):
    """A model with a CLIP image tower: a whole CLIP, or the tower alone (`image_encoder` of a pipeline)."""

    def files(self) -> tuple[str, ...]:
        return (beside(self.subfolder, CONFIG), beside(self.subfolder, WEIGHTS), self._processor())

    def prepared(self) -> dict[str, Any]:
        return self._preparing(self.home()).told()

    def _processor(self) -> str:
        return f"feature_extractor/{PROCESSOR}" if self.subfolder else PROCESSOR

    def _preparing(self, home: Path) -> Preparing:
        return read_preparing(home / self._processor())

    def _config(self) -> Any:
        """The tower's CLIPVisionConfig."""
        from transformers import CLIPVisionConfig

        try:
            return CLIPVisionConfig.from_pretrained(self.home() / self.subfolder, local_files_only=True)
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"{self.home() / self.subfolder} is no CLIP: {error}") from error

    def _tokens(self) -> int:
        """The class token and one for each patch."""
        config = self._config()
        return 1 + (config.image_size // config.patch_size) ** 2

    def _load(self, device: torch.device | str, dtype: torch.dtype) -> Any:
        from transformers import CLIPVisionModelWithProjection

        return load_model(CLIPVisionModelWithProjection, self.home() / self.subfolder, device, dtype)

    def _loaded(
        self, forward: Callable[[Tensor], Tensor], batch: int, device: torch.device | str, dtype: torch.dtype
    ) -> LoadedModel:
        prepare = self._preparing(self.home())

        def rows_of(picture: np.ndarray, captions: Sequence[str]) -> Tensor:
            return prepare(picture)[None]

        return LoadedModel(
            self.shape,
            rows_of=rows_of,
            forward=lambda rows: forward(rows.to(dtype)),
            batch=batch,
            device=device,
        )


class ClipImage(ImageTower):
    """A CLIP's view of the picture (Radford et al. 2021, ICML).

    - `embedding` (D,): the class token after the last layer norm, projected into the space shared with texts; as it
      is, not of length one.
    - `tokens` (1 + patches, D): every token through the same layer norm and projection, as Versatile Diffusion (Xu et
      al. 2023, ICCV) is conditioned and as MindEye1 (Scotti et al. 2023, NeurIPS) and Brain-Diffuser predict it:
      257 × 768 of ViT-L/14. `scale: class-token` divides by the length of the class token, as these two do.
    - `hidden` (1 + patches, width): what the last layer gives, before the layer norm.
    """

    kind: Literal["clip-image"] = "clip-image"
    output: Literal["embedding", "tokens", "hidden"] = "embedding"
    scale: Literal["none", "class-token"] = "none"

    @property
    def shape(self) -> tuple[int, ...]:
        config = self._config()
        if self.output == "embedding":
            return (config.projection_dim,)
        return (self._tokens(), config.projection_dim if self.output == "tokens" else config.hidden_size)

    def load(
        self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, *, batch: int = 64
    ) -> LoadedModel:
        model = self._load(device, dtype)

        def forward(rows: Tensor) -> Tensor:
            out = model(pixel_values=rows)
            if self.output == "embedding":
                found = out.image_embeds
                return found / found.norm(dim=-1, keepdim=True) if self.scale == "class-token" else found
            found = out.last_hidden_state
            if self.output == "tokens":
                found = model.visual_projection(model.vision_model.post_layernorm(found))
            return found / found[:, :1].norm(dim=-1, keepdim=True) if self.scale == "class-token" else found

        return self._loaded(forward, batch, device, dtype)


class ClipLayers(ImageTower):
    """Activations of a layer of CLIP's image tower, (1 + patches, width): low layers see texture, high ones things.

    `block` is the hidden state after the layer; `mlp` is what its second linear layer adds to it. NeuralDiffuser's
    g_2, g_4 ... g_12 (Li et al. 2025, IEEE TIP) are the `mlp` of layers 1 to 6 of ViT-B/32: its code counts linear
    layers, two a block. It also normalises by ImageNet's statistics, not CLIP's: `normalisation: imagenet`.
    """

    kind: Literal["clip-layers"] = "clip-layers"
    layer: int = Field(ge=1, description="counted from 1")
    output: Literal["block", "mlp"] = "block"
    normalisation: Literal["model", "imagenet"] = "model"

    @property
    def shape(self) -> tuple[int, ...]:
        config = self._config()
        if self.layer > config.num_hidden_layers:
            raise InputError(
                f"layer {self.layer}: {self.model} has layers 1 to {config.num_hidden_layers}, choose one of these"
            )
        return (self._tokens(), config.hidden_size)

    def _preparing(self, home: Path) -> Preparing:
        found = super()._preparing(home)
        if self.normalisation == "model":
            return found
        return Preparing(found.edge, found.size, found.crop, found.filter, IMAGENET_MEAN, IMAGENET_STD)

    def load(
        self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, *, batch: int = 64
    ) -> LoadedModel:
        model, seen = self._load(device, dtype).vision_model, list[Tensor]()
        del model.encoder.layers[self.layer :]  # nothing above is looked at
        layer = model.encoder.layers[self.layer - 1]

        def look(module: Any, given: Any, made: Any) -> None:
            seen.append(made[0] if isinstance(made, tuple) else made)

        (layer if self.output == "block" else layer.mlp).register_forward_hook(look)

        def forward(rows: Tensor) -> Tensor:
            seen.clear()
            model(pixel_values=rows)
            return seen[0]

        return self._loaded(forward, batch, device, dtype)


class OpenClip(ImageTower):
    """Tokens of an OpenCLIP image tower without the class token, not projected: 256 × 1664 of ViT-bigG/14, MindEye2's.

    As open_clip gives them with `output_tokens` from version 2.23 on: after the last layer norm (`normed`); before
    that version without it. `input: mindeye2` shows the model (x + 1) / 2 of pictures x in [0, 1]: the embedder that
    MindEye2's unCLIP decoder (Scotti et al. 2024, ICML) was trained with takes x to be in [-1, 1] and is given [0, 1],
    so that its decoder expects tokens of pictures without contrast. `input: clip` is what CLIP was trained on.
    """

    kind: Literal["openclip"] = "openclip"
    input: Literal["mindeye2", "clip"] = "mindeye2"
    normed: bool = True

    @property
    def shape(self) -> tuple[int, ...]:
        return (self._tokens() - 1, self._config().hidden_size)

    def _preparing(self, home: Path) -> Preparing:
        found = super()._preparing(home)
        if self.input == "clip":
            return found
        # ((x + 1) / 2 - mean) / std is (x - (2 mean - 1)) / (2 std)
        mean, std = tuple(2 * m - 1 for m in found.mean), tuple(2 * s for s in found.std)
        return Preparing(found.edge, found.size, found.crop, found.filter, mean, std)

    def load(
        self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, *, batch: int = 64
    ) -> LoadedModel:
        model = self._load(device, dtype).vision_model

        def forward(rows: Tensor) -> Tensor:
            found = model(pixel_values=rows).last_hidden_state
            return (model.post_layernorm(found) if self.normed else found)[:, 1:]

        return self._loaded(forward, batch, device, dtype)
