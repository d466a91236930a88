"""The simulation's CLIP: image and text towers of `transformers.CLIPModel`, and how pictures and captions enter."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from fmri2img.simulation.modelling.sizes import PROJECTION, Size
from fmri2img.simulation.modelling.tokenizer import CONTEXT
from fmri2img.simulation.records import PICTURE_SIZE

PATCH = 8
HEADS = 4
POSITION_SCALE = 0.25


def new_clip(size: Size, tokenizer: Any) -> Any:
    """An untrained model for 64 x 64 pictures and captions of 32 tokens."""
    tower = {
        "hidden_size": size.clip_width,
        "intermediate_size": 4 * size.clip_width,
        "num_attention_heads": HEADS,
        "projection_dim": PROJECTION,
    }
    text = tower | {
        "num_hidden_layers": size.text_layers,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": CONTEXT,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = tower | {
        "num_hidden_layers": size.vision_layers,
        "image_size": PICTURE_SIZE,
        "patch_size": PATCH,
    }
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=PROJECTION))
    with torch.no_grad():
        model.vision_model.embeddings.position_embedding.weight[1:] = places(size.clip_width)
    return model


def places(width: int) -> Tensor:
    """Where each patch is, as sines and cosines (64, width): what the image tower's positions start from.

    Beyer et al. (2022) keep such; here they may change. They are as large as what patches begin to show, and
    so neighbours attend to each other from the first step.
    """
    side = PICTURE_SIZE // PATCH
    turns = torch.arange(side)[:, None] / 10000 ** (torch.arange(width // 4) / (width // 4))
    along = torch.cat([turns.sin(), turns.cos()], dim=1)
    rows, columns = along[:, None].expand(-1, side, -1), along[None].expand(side, -1, -1)
    return POSITION_SCALE * torch.cat([rows, columns], dim=-1).reshape(side * side, width)


def image_processor() -> CLIPImageProcessor:
    """How pictures enter: 64 x 64, values from -1 to 1."""
    side = {"height": PICTURE_SIZE, "width": PICTURE_SIZE}
    return CLIPImageProcessor(
        size={"shortest_edge": PICTURE_SIZE},
        crop_size=side,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )


def as_pixels(pictures: np.ndarray, device: torch.device) -> Tensor:
    """Pictures uint8 (n, 64, 64, 3) as float32 (n, 3, 64, 64) from -1 to 1, what CLIP and the autoencoder take."""
    pixels = torch.from_numpy(np.array(pictures)).to(device).permute(0, 3, 1, 2)
    return pixels.float() / 127.5 - 1


def embed_pictures(model: Any, pixels: Tensor) -> Tensor:
    """Projected image embeddings (n, 64), not normalised, of pixels from -1 to 1."""
    return model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)


def embed_captions(model: Any, ids: Tensor) -> Tensor:
    """Projected text embeddings (n, 64), not normalised, of token ids (n, 32)."""
    return model.text_projection(model.text_model(input_ids=ids).pooler_output)
