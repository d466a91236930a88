"""What the reconstruction benchmark works on: a Stable Diffusion folder, and a decoder that predicts for it.

The weights are random: speed does not depend on them. The decoder is ridge regression from simulated responses to
random prompt embeddings, brought in as a file like anybody's features.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fmri2img.cli import run
from fmri2img.datasets import build_dataset
from fmri2img.launch import jobs
from fmri2img.simulation import Simulation, SimulationSpec
from fmri2img.trainer.config import Recipe

SPACE = "prompt"
GUIDANCE = 7.5
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"side": 8, "channels": (8, 16), "width": 16, "tokens": 4, "vae": (8, 8)},
    "small": {"side": 16, "channels": (96, 192, 192), "width": 128, "tokens": 16, "vae": (32, 64, 64)},
    "full": {
        "side": 64,
        "channels": (320, 640, 1280, 1280),
        "width": 768,
        "tokens": 77,
        "vae": (128, 256, 512, 512),
    },
}


def build_world(folder: Path, size: str, *, pictures: int, steps: int) -> None:
    """Write `sd/`, `data/`, `run/` and `prompt.npy`, the embeddings of all pictures, (ids, tokens, width) float32."""
    chosen = SIZES[size]
    save_pipeline(folder / "sd", chosen)
    spec = SimulationSpec(
        subjects={"subj01": 64}, sessions=1, trials_per_session=48 + 3 * pictures, test_pictures=pictures
    )
    dataset = build_dataset(Simulation(spec), folder / "data")
    ids = [dataset.samples("subj01", split).nsd_id for split in ("train", "test")]
    rows = 1 + max(int(found.max()) for found in ids)
    shape = (rows, chosen["tokens"], chosen["width"])
    np.save(folder / f"{SPACE}.npy", np.random.default_rng(0).standard_normal(shape, np.float32))
    told = ["features", "import", folder / "data", "--space", SPACE, "--from", folder / f"{SPACE}.npy"]
    if code := run([str(word) for word in told]):
        raise SystemExit(code)
    recipe = Recipe.model_validate(
        {
            "name": "benchmark",
            "spaces": {SPACE: {"extractor": {"kind": "imported"}}},
            "generator": {
                "kind": "sd",
                "model": str(folder / "sd"),
                "text": SPACE,
                "steps": steps,
                "guidance": GUIDANCE,
            },
        }
    )
    jobs.finetuning(recipe, folder / "data", folder / "run", subject="subj01", sessions=None, start="ridge")


def save_pipeline(folder: Path, size: dict[str, Any]) -> None:
    """A Stable Diffusion of these sizes with random weights."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    levels, width = len(size["channels"]), size["width"]
    unet = UNet2DConditionModel(
        sample_size=size["side"],
        block_out_channels=size["channels"],
        down_block_types=("CrossAttnDownBlock2D",) * (levels - 1) + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (levels - 1),
        cross_attention_dim=width,
        attention_head_dim=8,
        norm_num_groups=min(32, size["channels"][0]),
    )
    stages = len(size["vae"])
    vae = AutoencoderKL(
        block_out_channels=size["vae"],
        down_block_types=("DownEncoderBlock2D",) * stages,
        up_block_types=("UpDecoderBlock2D",) * stages,
        norm_num_groups=min(32, size["vae"][0]),
        sample_size=size["side"] * 2 ** (stages - 1),
        layers_per_block=2,
    )
    words = CLIPTextConfig(
        vocab_size=54,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=size["tokens"],
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    parts: dict[str, Any] = {
        "unet": unet,
        "vae": vae,
        "text_encoder": CLIPTextModel(words),
        "tokenizer": save_tokenizer(folder / "tokenizer", size["tokens"]),
        "scheduler": DDIMScheduler(
            beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1
        ),
        "safety_checker": None,
        "feature_extractor": None,
    }
    pipeline: Any = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    pipeline.save_pretrained(folder)


def save_tokenizer(folder: Path, tokens: int) -> Any:
    """A tokenizer that knows letters."""
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True)
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=tokens)
