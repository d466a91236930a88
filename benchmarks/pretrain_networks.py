"""The frozen networks of `pretrain.py`: one of random weights to run, and the published ones to count."""

import argparse
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import mindeye2_parts
import numpy as np
import torch
from diffusers import AutoencoderKL
from mindeye2_model import Sizes
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPVisionConfig, CLIPVisionModel, ConvNextConfig, ConvNextModel

from fmri2img.models.decoder import MultiSubjectDecoder
from fmri2img.trainer.batches import Batch

SIDE, PATCH = 64, 16  # pixels of a picture and of a patch
ROWS = 63  # nine of each of seven subjects


def tokens_of(options: argparse.Namespace) -> int:
    """Tokens of one picture."""
    return (SIDE // PATCH) ** 2 + 1


def frozen_network(options: argparse.Namespace) -> Callable[[Tensor], Tensor]:
    """Pictures (n, 3, side, side) as `prepare` gives to tokens (n, T, width); the same weights at every call."""
    config = CLIPVisionConfig(
        hidden_size=options.width,
        intermediate_size=4 * options.width,
        num_hidden_layers=options.layers,
        num_attention_heads=max(1, options.width // 64),
        image_size=SIDE,
        patch_size=PATCH,
    )
    torch.manual_seed(0)
    network: Any = CLIPVisionModel(config).eval().requires_grad_(False)

    @torch.no_grad()
    def run(pictures: Tensor) -> Tensor:
        # Sixty-four at a time, so that a shard of pictures needs no more memory than a batch.
        parts = [network(pixel_values=part).last_hidden_state for part in pictures.split(64)]
        return torch.cat(parts)

    return run


def prepare(pictures: np.ndarray) -> Tensor:
    """uint8 (n, H, W, 3) to (n, 3, H, W) between -1 and 1."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def measured(options: argparse.Namespace, decoder: MultiSubjectDecoder, batch: Batch) -> dict[str, float]:
    """Operations a row of this run's decoder, forward and backward, and of its frozen network, in MFLOP."""
    whole = batch.to(torch.device("cpu"))
    with FlopCounterMode(display=False) as counter:
        _, features, directions, *_ = decoder(whole.responses)
        sum(value.sum() for value in (*features.values(), *directions.values())).backward()
    step = counter.get_total_flops() / len(whole.pictures) / 1e6
    run = frozen_network(options)
    with FlopCounterMode(display=False) as counter:
        run(torch.zeros(1, 3, SIDE, SIDE))
    frozen = counter.get_total_flops() / 1e6
    return {"decoder_mflop": step, "frozen_mflop": frozen, "ratio": (step + frozen) / step}


def published() -> dict[str, Any]:
    """Operations of a row of MindEye2's training, in GFLOP, all counted on the meta device, none by formula.

    Per row the published step runs the image tower of OpenCLIP ViT-bigG/14 and the encoder of Stable Diffusion's
    autoencoder once, and ConvNeXt-XL on the picture and on an augmented one, all at 224 pixels, forward alone; the
    decoder goes forward and backward (`mindeye2_model.py`, seven subjects). `ratio` is a step with the frozen networks
    that the variant needs over one without.
    """
    tower = CLIPVisionConfig(
        hidden_size=1664,
        intermediate_size=8192,
        num_hidden_layers=48,
        num_attention_heads=16,
        image_size=224,
        patch_size=14,
    )
    wide = (128, 256, 512, 512)
    autoencoder: dict[str, Any] = {
        "block_out_channels": wide,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
        "latent_channels": 4,
    }
    maps = ConvNextConfig(depths=[3, 3, 27, 3], hidden_sizes=[256, 512, 1024, 2048])
    frozen = {
        "bigg_image_tower": _forward(lambda: CLIPVisionModel(tower)),
        "vae_encoder": _forward(lambda: AutoencoderKL(**autoencoder), "encode"),
        "convnext_xl_twice": 2 * _forward(lambda: ConvNextModel(maps)),
    }
    sizes = Sizes()
    variants = {
        "whole": (sizes, list(frozen)),
        "hidden_1024": (replace(sizes, hidden=1024), list(frozen)),
        "without_low_level": (replace(sizes, low_level=False), ["bigg_image_tower"]),
        "without_prior": (replace(sizes, prior=False), list(frozen)),
    }
    rows = {}
    for name, (size, needed) in variants.items():
        decoder = mindeye2_parts.step_flops(size, ROWS) / ROWS / 1e9
        rows[name] = {"decoder": decoder, "ratio": (decoder + sum(frozen[part] for part in needed)) / decoder}
    return {"frozen_gflop": frozen, "decoder_gflop_and_ratio": rows}


def _forward(make: Callable[[], nn.Module], method: str = "forward") -> float:
    with torch.device("meta"):
        network = make().eval()
        picture = torch.empty(1, 3, 224, 224)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        getattr(network, method)(picture)
    return counter.get_total_flops() / 1e9
