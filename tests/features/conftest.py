"""Tiny models with random weights in the folders that published ones come in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

IMAGE = 32
CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
PROCESSOR = {
    "crop_size": {"height": IMAGE, "width": IMAGE},
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "image_mean": CLIP_MEAN,
    "image_std": CLIP_STD,
    "resample": 3,
    "size": {"shortest_edge": IMAGE},
}
LETTERS = "abcdefghijklmnopqrstuvwxyz"
BEGIN, END = "<|startoftext|>", "<|endoftext|>"


def write_tokenizer(folder: Path) -> int:
    """A byte-pair tokenizer that knows letters alone; returns the size of its vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    words = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), BEGIN, END]
    (folder / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    told = {"bos_token": BEGIN, "eos_token": END, "pad_token": END, "unk_token": END, "model_max_length": 16}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    return len(words)


def write_clip(folder: Path, seed: int = 0) -> Path:
    """A CLIP of two towers, as `openai/clip-vit-large-patch14` is laid out."""
    from transformers import CLIPConfig, CLIPModel

    words = write_tokenizer(folder)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "projection_dim": 12}
    config = CLIPConfig(
        text_config=size
        | {
            "num_hidden_layers": 2,
            "vocab_size": words,
            "max_position_embeddings": 16,
            "bos_token_id": words - 2,
            "eos_token_id": words - 1,
            "pad_token_id": words - 1,
        },
        vision_config=size | {"num_hidden_layers": 3, "image_size": IMAGE, "patch_size": 8},
        projection_dim=12,
    )
    torch.manual_seed(seed)
    model = CLIPModel(config)
    for parameter in model.parameters():  # layer norms too, so that leaving one out shows
        torch.nn.init.normal_(parameter, 0.1, 0.3)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return folder


def write_vae(folder: Path, seed: int = 0) -> Path:
    """An autoencoder that halves edges once."""
    from diffusers import AutoencoderKL

    torch.manual_seed(seed)
    model: Any = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=3,
        sample_size=16,
        scaling_factor=0.5,
    )
    model.save_pretrained(folder)
    return folder


def write_convnext(folder: Path, seed: int = 0) -> Path:
    """A ConvNeXt with a classifier on it, as published ones have."""
    from transformers import ConvNextConfig, ConvNextForImageClassification

    torch.manual_seed(seed)
    config = ConvNextConfig(hidden_sizes=[4, 6, 8, 10], depths=[1, 1, 2, 1], layer_scale_init_value=0.5)
    ConvNextForImageClassification(config).save_pretrained(folder)
    told = {
        "feature_extractor_type": "ConvNextFeatureExtractor",
        "crop_pct": 0.875,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "resample": 3,
        "size": 64,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(told))
    return folder


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("models") / "clip")


@pytest.fixture(scope="session")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vae(tmp_path_factory.mktemp("models") / "vae")


@pytest.fixture(scope="session")
def convnext(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_convnext(tmp_path_factory.mktemp("models") / "convnext")


@pytest.fixture(scope="session")
def shown() -> list[np.ndarray]:
    """Pictures of unequal sizes, smooth enough to be resized sensibly."""
    generator = np.random.default_rng(0)
    sizes = [(40, 40), (48, 36), (33, 57), (32, 32), (70, 41)]
    coarse = [generator.random((6, 6, 3)) for _ in sizes]
    return [
        (np.kron(c, np.ones((-(-h // 6), -(-w // 6), 1)))[:h, :w] * 255).astype(np.uint8)
        for c, (h, w) in zip(coarse, sizes, strict=True)
    ]
