"""What CLIP's text tower makes of a picture's captions."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fmri2img.errors import InputError
from fmri2img.features.loaded import LoadedModel
from fmri2img.features.loading import ModelExtractor, beside, load_model, load_tokenizer
from fmri2img.hub import CONFIG, TOKENIZER, WEIGHTS


class ClipText(ModelExtractor):
    """A CLIP's view of the captions (Radford et al. 2021), of the first one or the mean over all.

    - `tokens` (77, width): after the last layer norm, padded to the full length: what Stable Diffusion 1.x attends to,
      and what Takagi and Nishimoto (2023, CVPR) and NeuralDiffuser predict (the mean of five captions).
    - `projected` (77, D): the same, projected; Versatile Diffusion's. `scale: pooled` divides by the length of the
      projected embedding, as that and Brain-Diffuser do.
    - `embedding` (D,): the projected token at the text's end.
    """

    kind: Literal["clip-text"] = "clip-text"
    captions: Literal["mean", "first"] = "mean"
    output: Literal["embedding", "tokens", "projected"] = "embedding"
    scale: Literal["none", "pooled"] = "none"

    def files(self) -> tuple[str, ...]:
        return (beside(self.subfolder, CONFIG), beside(self.subfolder, WEIGHTS))

    def optional(self) -> tuple[str, ...]:
        return tuple(beside("tokenizer" if self.subfolder else "", file) for file in TOKENIZER)

    def _config(self) -> Any:
        """The tower's CLIPTextConfig."""
        from transformers import CLIPTextConfig

        try:
            return CLIPTextConfig.from_pretrained(self.home() / self.subfolder, local_files_only=True)
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"{self.home() / self.subfolder} is no CLIP: {error}") from error

    @property
    def shape(self) -> tuple[int, ...]:
        config = self._config()
        if self.output == "embedding":
            return (config.projection_dim,)
        width = config.hidden_size if self.output == "tokens" else config.projection_dim
        return (config.max_position_embeddings, width)

    def load(
        self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, *, batch: int = 64
    ) -> LoadedModel:
        tokenizer = load_tokenizer(self.home() / ("tokenizer" if self.subfolder else ""))
        length = self._config().max_position_embeddings
        model = self._load(device, dtype)

        def rows_of(picture: np.ndarray, captions: Sequence[str]) -> Tensor:
            if not captions:
                raise InputError(
                    "clip-text needs captions: this data set has a picture without one; use pictures alone"
                )
            texts = list(captions[:1] if self.captions == "first" else captions)
            return tokenizer(
                texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
            ).input_ids

        def forward(rows: Tensor) -> Tensor:
            out = model(input_ids=rows)
            if self.output == "tokens":
                found = out.last_hidden_state
            elif self.output == "projected":
                found = model.text_projection(out.last_hidden_state)
            else:
                found = out.text_embeds
            if self.scale == "none":
                return found
            return found / out.text_embeds.norm(dim=-1).view(-1, *[1] * (found.ndim - 1))

        return LoadedModel(self.shape, rows_of=rows_of, forward=forward, batch=batch, device=device)

    def _load(self, device: torch.device | str, dtype: torch.dtype) -> Any:
        """The tower with its projection; a pipeline's `text_encoder` may be without, which `tokens` do not need."""
        from transformers import CLIPTextModel, CLIPTextModelWithProjection

        if self.output == "tokens" and self.scale == "none":
            return load_model(CLIPTextModel, self.home() / self.subfolder, device, dtype)
        return load_model(CLIPTextModelWithProjection, self.home() / self.subfolder, device, dtype)
