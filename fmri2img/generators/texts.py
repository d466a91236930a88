"""Prompt embeddings of fixed words, made once when a model is loaded; its text encoders are not kept."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fmri2img.errors import InputError
from fmri2img.features.loading import load_tokenizer
from fmri2img.generators.folders import ModelFolder


@dataclass(frozen=True)
class Words:
    """Embedded prompt: tokens (n, tokens, width) for cross-attention, and SDXL's pooled (n, width) or None."""

    tokens: Tensor
    pooled: Tensor | None


@torch.no_grad()
def embed_words(folder: ModelFolder, texts: list[str], device: torch.device, dtype: torch.dtype) -> Words:
    """Embed n texts as the pipelines of diffusers do.

    Stable Diffusion: the last hidden state of CLIP's text tower, after its final layer norm. SDXL, known by its
    text_encoder_2: the last but one of both towers side by side, and the projected embedding of the second one.
    """
    if not folder.has("text_encoder_2"):
        return Words(_encode(folder, "", texts, device, dtype).last_hidden_state, None)
    second = _encode(folder, "_2", texts, device, dtype)
    parts = [second.hidden_states[-2]]
    if folder.has("text_encoder"):  # the refiner model has the second tower only
        parts.insert(0, _encode(folder, "", texts, device, dtype).hidden_states[-2])
    return Words(torch.cat(parts, dim=-1), second.text_embeds)


def token_ids(folder: ModelFolder, part: str, texts: list[str], longest: int) -> Tensor:
    """Ids (n, tokens) of n texts, padded and cut to the tokenizer's length, at most `longest`."""
    tokenizer = load_tokenizer(folder.path / part)
    length = min(tokenizer.model_max_length, longest)
    padded = tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    ids: Tensor = padded.input_ids
    return ids


def _encode(
    folder: ModelFolder, number: str, texts: list[str], device: torch.device, dtype: torch.dtype
) -> Any:
    import transformers

    kinds: dict[str, Any] = {"CLIPTextModel": transformers.CLIPTextModel}
    kinds["CLIPTextModelWithProjection"] = transformers.CLIPTextModelWithProjection
    named = folder.json(f"text_encoder{number}/config.json").get("architectures") or ["CLIPTextModel"]
    if named[0] not in kinds:
        raise InputError(
            f"{folder.name}: its text encoder is {named[0]}, which must be one of {', '.join(kinds)}"
        )
    model = folder.model(f"text_encoder{number}", kinds[named[0]], device, dtype)
    ids = token_ids(folder, f"tokenizer{number}", texts, model.config.max_position_embeddings)
    return model(ids.to(device), output_hidden_states=True)
