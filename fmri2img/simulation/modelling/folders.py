"""The trained models as folders that transformers and diffusers load: safetensors, float16; loaded as float32."""

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableUnCLIPImg2ImgPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
from torch import nn
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from fmri2img.errors import InputError
from fmri2img.files import staged_folder
from fmri2img.simulation.modelling.clip import image_processor
from fmri2img.simulation.modelling.diffusion import new_noising, new_scheduler
from fmri2img.simulation.modelling.sampling import Models
from fmri2img.simulation.modelling.sizes import PROJECTION


def save_clip(folder: Path, model: CLIPModel, tokenizer: CLIPTokenizer) -> None:
    """`CLIPModel` with tokenizer and image processor."""
    with staged_folder(folder) as staging:
        model.half().save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        image_processor().save_pretrained(staging)
        _settle(staging)


def load_clip(folder: Path, device: str) -> tuple[CLIPModel, CLIPTokenizer]:
    """What `save_clip` saved."""
    model: Any = CLIPModel.from_pretrained(_there(folder), dtype=torch.float32, local_files_only=True)
    return model.to(device).eval(), CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def save_part(folder: Path, model: Any) -> None:
    """One diffusers model: the autoencoder or the ControlNet."""
    with staged_folder(folder) as staging:
        model.half().save_pretrained(staging)


def load_part(kind: Any, folder: Path, device: str) -> Any:
    """What `save_part` saved, or a part of a pipeline's folder."""
    model = kind.from_pretrained(_there(folder), torch_dtype=torch.float32, local_files_only=True)
    if hasattr(model, "conv_in"):
        model = model.to(memory_format=torch.channels_last)
    return model.to(device).eval()


def save_sd(folder: Path, unet: Any, vae: Any, clip: Any, tokenizer: CLIPTokenizer) -> None:
    """A `StableDiffusionPipeline`."""
    pipeline: Any = StableDiffusionPipeline(
        vae=vae.half(),
        text_encoder=_text_tower(clip),
        tokenizer=tokenizer,
        unet=unet.half(),
        scheduler=DDIMScheduler.from_config(new_scheduler().config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    with staged_folder(folder) as staging:
        pipeline.save_pretrained(staging)
        _settle(staging)


def save_unclip(
    folder: Path,
    unet: Any,
    vae: Any,
    clip: Any,
    tokenizer: CLIPTokenizer,
    normaliser: Any,
) -> None:
    """A `StableUnCLIPImg2ImgPipeline`."""
    vision = CLIPVisionModelWithProjection(clip.config.vision_config)
    _copy(clip, vision, ("vision_model.", "visual_projection."))
    pipeline: Any = StableUnCLIPImg2ImgPipeline(
        feature_extractor=image_processor(),
        image_encoder=vision.half(),
        image_normalizer=normaliser.half(),
        image_noising_scheduler=new_noising(),
        tokenizer=tokenizer,
        text_encoder=_text_tower(clip),
        unet=unet.half(),
        scheduler=DDIMScheduler.from_config(new_scheduler().config),
        vae=vae.half(),
    )
    with staged_folder(folder) as staging:
        pipeline.save_pretrained(staging)
        _settle(staging)


def new_normaliser(embeddings: Any) -> Any:
    """Mean and standard deviation of image embeddings (n, 64), between which noise is added."""
    normaliser: Any = StableUnCLIPImageNormalizer(embedding_dim=PROJECTION)
    values = torch.from_numpy(embeddings)
    with torch.no_grad():
        normaliser.mean.copy_(values.mean(0, keepdim=True))
        normaliser.std.copy_(values.std(0, keepdim=True))
    return normaliser.requires_grad_(False)


def load_all(out: Path, device: str = "cpu") -> Models:
    """Every trained model in a folder, as float32."""
    clip, tokenizer = load_clip(out / "clip", device)
    return Models(
        clip=clip,
        tokenizer=tokenizer,
        vae=load_part(AutoencoderKL, out / "vae", device),
        unclip=load_part(UNet2DConditionModel, out / "unclip" / "unet", device),
        normaliser=load_part(StableUnCLIPImageNormalizer, out / "unclip" / "image_normalizer", device),
        sd=load_part(UNet2DConditionModel, out / "sd" / "unet", device),
        controlnet=load_part(ControlNetModel, out / "controlnet", device),
    )


def parameters(models: Models) -> dict[str, int]:
    """How many parameters the model of each folder has."""
    parts = {name: getattr(models, name) for name in ("clip", "vae", "unclip", "sd", "controlnet")}
    return {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}


def _text_tower(clip: Any) -> CLIPTextModel:
    tower = CLIPTextModel(clip.config.text_config)
    _copy(clip, tower, ("text_model.",))
    return tower.half()


def _copy(clip: Any, tower: nn.Module, prefixes: tuple[str, ...]) -> None:
    """A tower's weights, under the names that this version of transformers gives them when it stands alone."""
    weights = {name: value for name, value in clip.state_dict().items() if name.startswith(prefixes)}
    if not any(name.startswith(prefixes[0]) for name in tower.state_dict()):
        weights = {name.removeprefix(prefixes[0]): value for name, value in weights.items()}
    tower.load_state_dict(weights)


def _settle(folder: Path) -> None:
    """Configurations that say nothing of where parts were read, and float32.

    transformers would otherwise load in the type on disk, and its towers would not fit diffusers' networks.
    """
    for path in folder.rglob("config.json"):
        told = path.read_text().replace('"dtype": "float16"', '"dtype": "float32"')
        lines = [line for line in told.splitlines(keepends=True) if '"_name_or_path"' not in line]
        path.write_text("".join(lines))


def _there(folder: Path) -> Path:
    if not folder.is_dir():
        raise InputError(
            f"{folder} is missing and what is to be trained builds on it: train {folder.name} first"
        )
    return folder
