"""Tiny models with random weights, saved in the layout of the real ones: 16 pixels, latents (4, 8, 8)."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

WIDTH, TOKENS, IMAGE = 8, 6, 10  # of prompt embeddings; of image embeddings
PATCHES = 5  # tokens of the image tower
SIDE = 16


def fill(model: Any, seed: int) -> Any:
    """Random weights for every parameter, those that libraries start at zero too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            centre = 1.0 if name.endswith("weight") and value.ndim == 1 else 0.0
            value.copy_(centre + noise * (0.5 / max(1, value[0].numel()) ** 0.5 if value.ndim > 1 else 0.1))
    return model.eval()


def tokenizer(folder: Path) -> Any:
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True)
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    vocabulary = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    made = CLIPTokenizer.from_pretrained(folder, model_max_length=TOKENS)
    made.save_pretrained(folder)
    return made


def text_config(width: int = WIDTH) -> dict[str, Any]:
    return {
        "vocab_size": 54,
        "hidden_size": width,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": TOKENS,
        "projection_dim": width,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }


def text_encoder(seed: int, width: int = WIDTH, *, projected: bool = False) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    kind = CLIPTextModelWithProjection if projected else CLIPTextModel
    return fill(kind(CLIPTextConfig(**text_config(width))), seed)


def image_encoder(seed: int) -> Any:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=12,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
        projection_dim=IMAGE,
    )
    return fill(CLIPVisionModelWithProjection(config), seed)


def processor() -> Any:
    from transformers import CLIPImageProcessorPil

    return CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})


def vae(seed: int = 1) -> Any:
    from diffusers import AutoencoderKL

    model = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        layers_per_block=1,
        sample_size=SIDE,
        scaling_factor=0.5,
    )
    return fill(model, seed)


def unet(seed: int = 2, **settings: Any) -> Any:
    from diffusers import UNet2DConditionModel

    told = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "cross_attention_dim": WIDTH,
        "attention_head_dim": 4,
    }
    return fill(UNet2DConditionModel(**(told | settings)), seed)


def scheduler(**settings: Any) -> Any:
    from diffusers import DDIMScheduler

    told = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
    return DDIMScheduler(**(told | {"clip_sample": False, "set_alpha_to_one": False} | settings))


def sd_parts(folder: Path, **settings: Any) -> dict[str, Any]:
    return {
        "vae": vae(),
        "text_encoder": text_encoder(3),
        "tokenizer": tokenizer(folder / "tokenizer"),
        "unet": unet(**settings),
        "scheduler": scheduler(),
    }


def save_sd(folder: Path) -> None:
    from diffusers import StableDiffusionPipeline

    rest: dict[str, Any] = {
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }
    pipeline: Any = StableDiffusionPipeline(**sd_parts(folder), **rest)
    pipeline.save_pretrained(folder)


def save_sdxl(folder: Path) -> None:
    from diffusers import StableDiffusionXLPipeline

    pooled, sizes = 12, 4
    model = unet(
        cross_attention_dim=WIDTH + pooled,
        addition_embed_type="text_time",
        addition_time_embed_dim=sizes,
        projection_class_embeddings_input_dim=pooled + 6 * sizes,
    )
    parts = sd_parts(folder) | {
        "unet": model,
        "text_encoder_2": text_encoder(4, pooled, projected=True),
        "tokenizer_2": tokenizer(folder / "tokenizer_2"),
    }
    pipeline: Any = StableDiffusionXLPipeline(**parts)
    pipeline.save_pretrained(folder)


def save_unclip(folder: Path) -> None:
    from diffusers import DDPMScheduler, StableUnCLIPImg2ImgPipeline
    from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import (
        StableUnCLIPImageNormalizer,
    )

    normaliser = fill(StableUnCLIPImageNormalizer(IMAGE), 5)
    with torch.no_grad():
        normaliser.std.abs_().add_(0.5)
    settings = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 2 * IMAGE}
    pipeline: Any = StableUnCLIPImg2ImgPipeline(
        feature_extractor=processor(),
        image_encoder=image_encoder(6),
        image_normalizer=normaliser,
        image_noising_scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        **sd_parts(folder, **settings),
    )
    pipeline.save_pretrained(folder)


def save_token_unclip(folder: Path) -> None:
    """As an SDXL unCLIP after conversion: tokens for cross-attention, four sizes and no text."""
    settings: dict[str, Any] = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4}
    unet(
        cross_attention_dim=IMAGE,
        projection_class_embeddings_input_dim=16,
        use_linear_projection=True,
        **settings,
    ).save_pretrained(folder / "unet")
    vae().save_pretrained(folder / "vae")
    scheduler().save_pretrained(folder / "scheduler")


def save_controlnet(folder: Path) -> None:
    from diffusers import ControlNetModel

    model = ControlNetModel.from_unet(unet(), conditioning_embedding_out_channels=(4, 8))
    fill(model, 7).save_pretrained(folder)


def save_adapter(folder: Path, *, plus: bool) -> None:
    """In the file format of h94/IP-Adapter: image_proj.*, ip_adapter.N.to_k_ip.weight and to_v_ip.weight."""
    generator = torch.Generator().manual_seed(8)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * 0.3

    tensors: dict[str, torch.Tensor] = {}
    widths = {"down_blocks.0": 8, "up_blocks.1": 8, "mid_block": 16}
    attended = [name for name in unet().attn_processors if "attn2" in name]
    for place, name in enumerate(attended):
        width = next(size for start, size in widths.items() if name.startswith(start))
        for what in ("to_k_ip", "to_v_ip"):
            tensors[f"ip_adapter.{2 * place + 1}.{what}.weight"] = random(width, WIDTH)
    if plus:
        tensors |= {f"image_proj.{name}": value for name, value in _resampler(random).items()}
        image_encoder(6).save_pretrained(folder / "models" / "image_encoder")
    else:  # always four tokens of one embedding
        tensors |= {
            "image_proj.proj.weight": random(4 * WIDTH, IMAGE),
            "image_proj.proj.bias": random(4 * WIDTH),
        }
        tensors |= {"image_proj.norm.weight": 1 + random(WIDTH), "image_proj.norm.bias": random(WIDTH)}
    (folder / "models").mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "models" / "ip-adapter_sd15.safetensors")


def _resampler(random: Callable[..., torch.Tensor]) -> dict[str, torch.Tensor]:
    """The perceiver of an IP-Adapter plus: four layers of one head of 64, two queries."""
    tensors = {"latents": random(1, 2, 64), "proj_in.weight": random(64, 12), "proj_in.bias": random(64)}
    tensors |= {"proj_out.weight": random(WIDTH, 64), "proj_out.bias": random(WIDTH)}
    tensors |= {"norm_out.weight": 1 + random(WIDTH), "norm_out.bias": random(WIDTH)}
    for layer in range(4):
        start = f"layers.{layer}"
        for norm in ("0.norm1", "0.norm2", "1.0"):
            tensors |= {f"{start}.{norm}.weight": 1 + random(64), f"{start}.{norm}.bias": random(64)}
        shapes = {
            "0.to_q": (64, 64),
            "0.to_kv": (128, 64),
            "0.to_out": (64, 64),
            "1.1": (256, 64),
            "1.3": (64, 256),
        }
        tensors |= {f"{start}.{name}.weight": random(*shape) / 8 for name, shape in shapes.items()}
    return tensors


def save_versatile(folder: Path) -> None:
    """In the layout of shi-labs/versatile-diffusion: a UNet for pictures and one for text, whose attention is mixed."""
    from diffusers.pipelines.deprecated.versatile_diffusion.modeling_text_unet import UNetFlatConditionModel

    told = dict(unet(cross_attention_dim=IMAGE).config)
    unet(cross_attention_dim=IMAGE).save_pretrained(folder / "image_unet")
    names = {"CrossAttnDownBlock2D": "CrossAttnDownBlockFlat", "DownBlock2D": "DownBlockFlat"}
    names |= {"CrossAttnUpBlock2D": "CrossAttnUpBlockFlat", "UpBlock2D": "UpBlockFlat"}
    flat = {
        key: told[key]
        for key in (
            "block_out_channels",
            "layers_per_block",
            "norm_num_groups",
            "cross_attention_dim",
            "attention_head_dim",
        )
    }
    flat["down_block_types"] = tuple(names[name] for name in told["down_block_types"])
    flat["up_block_types"] = tuple(names[name] for name in told["up_block_types"])
    text = UNetFlatConditionModel(
        sample_size=8, mid_block_type="UNetMidBlockFlatCrossAttn", in_channels=4, out_channels=4, **flat
    )
    fill(text, 9).save_pretrained(folder / "text_unet")
    vae().save_pretrained(folder / "vae")
    scheduler().save_pretrained(folder / "scheduler")
    text_encoder(10, IMAGE, projected=True).save_pretrained(folder / "text_encoder")
    tokenizer(folder / "tokenizer")
    processor().save_pretrained(folder / "image_feature_extractor")
    image_encoder(6).save_pretrained(folder / "image_encoder")


def versatile_parts(folder: Path) -> dict[str, Any]:
    """The parts of a saved folder, as the pipeline takes them."""
    import diffusers
    import transformers
    from diffusers.pipelines.deprecated.versatile_diffusion.modeling_text_unet import UNetFlatConditionModel

    kinds = {
        "image_unet": diffusers.UNet2DConditionModel,
        "text_unet": UNetFlatConditionModel,
        "vae": diffusers.AutoencoderKL,
        "scheduler": diffusers.DDIMScheduler,
        "text_encoder": transformers.CLIPTextModelWithProjection,
        "image_encoder": transformers.CLIPVisionModelWithProjection,
        "tokenizer": transformers.CLIPTokenizer,
        "image_feature_extractor": transformers.CLIPImageProcessorPil,
    }
    return {name: kind.from_pretrained(folder / name) for name, kind in kinds.items()}
