"""Our loop gives what the stock pipelines of diffusers give: the same components, noise, sampler and guidance."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fmri2img.generators.latents import Autoencoder
from fmri2img.generators.samplers import CLASSES

Tiny = Any
SEEDS = (5, 6, 7)
SD = {"safety_checker": None, "requires_safety_checker": False, "local_files_only": True}


def run(pipeline: Any, tiny: Tiny, *, steps: int = 2, guidance: float = 7.5, **settings: Any) -> Tensor:
    """Pictures (B, 3, H, W) of a pipeline with the seeds of `ours`."""
    pipeline.set_progress_bar_config(disable=True)
    with torch.no_grad():
        return pipeline(
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=tiny.seeded(*SEEDS),
            output_type="pt",
            **settings,
        ).images


def ours(tiny: Tiny, case: str, features: dict[str, Tensor], **changes: Any) -> Tensor:
    made: Tensor = tiny.load(case, **changes).generate(features, tiny.seeded(*SEEDS))
    return made


def same(first: Tensor, second: Tensor) -> None:
    assert second.std() > 0.01
    torch.testing.assert_close(first, second, atol=1e-5, rtol=0)


def stable(folder: Path, name: str = "StableDiffusionPipeline", **parts: Any) -> Any:
    import diffusers

    return getattr(diffusers, name).from_pretrained(folder, **SD, **parts)


@pytest.mark.parametrize("sampler", CLASSES)
def test_stable_diffusion_with_every_sampler(tiny: Tiny, sampler: str) -> None:
    import diffusers

    features = tiny.features()
    pipeline = stable(tiny.root / "sd")
    pipeline.scheduler = getattr(diffusers, CLASSES[sampler]).from_config(pipeline.scheduler.config)
    stock = run(pipeline, tiny, steps=4, prompt_embeds=features["text"])
    same(ours(tiny, "sd", features, sampler=sampler, steps=4), stock)


def test_guidance_1_is_none(tiny: Tiny) -> None:
    features = tiny.features()
    stock = run(stable(tiny.root / "sd"), tiny, guidance=1.0, prompt_embeds=features["text"])
    same(ours(tiny, "sd", features, guidance=1.0), stock)
    same(ours(tiny, "sd", features, guidance=1.0, negative="a b"), stock)


def test_guidance_leads_away_from_the_negative_prompt(tiny: Tiny) -> None:
    features = tiny.features()
    stock = run(
        stable(tiny.root / "sd"), tiny, prompt_embeds=features["text"], negative_prompt=["ab c"] * len(SEEDS)
    )
    same(ours(tiny, "sd", features, negative="ab c"), stock)


def test_words_are_embedded_as_the_pipeline_embeds_them(tiny: Tiny) -> None:
    stock = run(stable(tiny.root / "sd"), tiny, prompt=["a cat on a mat"] * len(SEEDS))
    same(_worded(tiny, "a cat on a mat"), stock)


def _worded(tiny: Tiny, words: str) -> Tensor:
    """A ControlNet of weight 0 is Stable Diffusion itself, and may be told words."""
    return ours(tiny, "controlnet", tiny.features(), text=None, prompt=words, scale=0.0)


@pytest.mark.parametrize("sampler", ["ddim", "euler", "dpm++", "pndm"])
def test_image_to_image_from_latents(tiny: Tiny, sampler: str) -> None:
    import diffusers

    features = tiny.features()
    pipeline = stable(tiny.root / "sd", "StableDiffusionImg2ImgPipeline")
    pipeline.scheduler = getattr(diffusers, CLASSES[sampler]).from_config(pipeline.scheduler.config)
    stock = run(
        pipeline, tiny, steps=5, prompt_embeds=features["text"], image=features["latents"], strength=0.6
    )
    same(ours(tiny, "sd image-to-image", features, sampler=sampler, steps=5, strength=0.6), stock)


def test_noise_of_each_step_with_eta(tiny: Tiny) -> None:
    features = tiny.features()
    stock = run(stable(tiny.root / "sd"), tiny, steps=4, prompt_embeds=features["text"], eta=0.7)
    same(ours(tiny, "sd", features, steps=4, eta=0.7), stock)


def test_stable_diffusion_xl(tiny: Tiny) -> None:
    from diffusers import StableDiffusionXLPipeline

    features = tiny.features()
    pipeline = StableDiffusionXLPipeline.from_pretrained(
        tiny.root / "sdxl", local_files_only=True, add_watermarker=False
    )
    told = {"prompt_embeds": features["text-xl"], "pooled_prompt_embeds": features["pooled"]}
    words = {"prompt": ["ab"] * 3, "negative_prompt": ["c"] * 3}
    plain = pipeline.encode_prompt(**words, device="cpu")  # tokens, negative, pooled, negative
    empty = {
        "negative_prompt_embeds": torch.zeros_like(plain[0]),
        "negative_pooled_prompt_embeds": plain[3] * 0,
    }
    same(ours(tiny, "sdxl", features), run(pipeline, tiny, **told, **empty))
    negative = {"negative_prompt_embeds": plain[1], "negative_pooled_prompt_embeds": plain[3]}
    same(ours(tiny, "sdxl", features, negative="c"), run(pipeline, tiny, **told, **negative))


def test_stable_unclip(tiny: Tiny) -> None:
    from diffusers import StableUnCLIPImg2ImgPipeline

    features = tiny.features()
    pipeline = StableUnCLIPImg2ImgPipeline.from_pretrained(tiny.root / "unclip", local_files_only=True)
    stock = run(
        pipeline, tiny, guidance=10, image_embeds=features["image"], prompt=[""] * len(SEEDS), noise_level=9
    )
    same(ours(tiny, "unclip", features), stock)


def test_controlnet(tiny: Tiny) -> None:
    from diffusers import ControlNetModel

    features = tiny.features()
    control = ControlNetModel.from_pretrained(tiny.root / "control")
    pipeline = stable(tiny.root / "sd", "StableDiffusionControlNetPipeline", controlnet=control)
    picture = features["pixels"].clamp(0, 1).repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    structure = {"kind": "pixels", "space": "pixels", "size": 16, "smooth": False}
    for scale in (1.0, 0.4):
        stock = run(
            pipeline,
            tiny,
            prompt_embeds=features["text"],
            image=picture,
            controlnet_conditioning_scale=scale,
        )
        same(ours(tiny, "controlnet", features, structure=structure, scale=scale), stock)


@pytest.mark.parametrize(("adapter", "space"), [("adapter", "image"), ("plus", "hidden")])
def test_ip_adapter(tiny: Tiny, adapter: str, space: str) -> None:
    features = tiny.features()
    pipeline = stable(tiny.root / "sd", feature_extractor=tiny.make.processor())
    folder = tiny.root / adapter
    tower = "image_encoder" if adapter == "plus" else None
    pipeline.load_ip_adapter(
        folder, subfolder="models", weight_name="ip-adapter_sd15.safetensors", image_encoder_folder=tower
    )
    pipeline.set_ip_adapter_scale(0.7)
    grey = torch.zeros(1, *features[space].shape[1:])
    if adapter == "plus":
        grey = pipeline.image_encoder(torch.zeros(1, 3, 16, 16), output_hidden_states=True).hidden_states[-2]
    pipeline.set_progress_bar_config(disable=True)
    pictures = []
    for row, seed in enumerate(
        SEEDS
    ):  # of several prompts the pipeline would repeat every embedding for each
        image = features[space][row : row + 1]
        with torch.no_grad():
            made = pipeline(
                prompt="",
                num_inference_steps=2,
                generator=tiny.seeded(seed),
                output_type="pt",
                ip_adapter_image_embeds=[torch.stack([grey.detach(), image])],
            )
        pictures.append(made.images)
    stock = torch.cat(pictures)
    case = "ip-adapter plus" if adapter == "plus" else "ip-adapter"
    same(ours(tiny, case, features, scale=0.7), stock)


def test_refinement_is_image_to_image_from_the_bases_picture(tiny: Tiny) -> None:
    features = tiny.features()
    pipeline = stable(tiny.root / "sd", "StableDiffusionImg2ImgPipeline")
    base = tiny.load("vae").generate(features, [])
    latents = Autoencoder(pipeline.vae, chunk=8).encode(base)
    stock = run(
        pipeline, tiny, steps=4, guidance=5, prompt_embeds=features["text"], image=latents, strength=0.5
    )
    same(ours(tiny, "refine", features), stock)


def test_pictures_and_latents_go_both_ways_as_the_pipeline_has_it(tiny: Tiny) -> None:
    vae = stable(tiny.root / "sd").vae
    features = tiny.features(5)
    wanted = (vae.decode(features["latents"] / 0.5).sample / 2 + 0.5).clamp(0, 1).detach()
    for chunk in (1, 2, 5, 8):
        made = tiny.load("vae", decode_batch=chunk).generate(features, [])
        same(made, wanted)
    found = Autoencoder(vae, chunk=2).encode(wanted)
    torch.testing.assert_close(found, 0.5 * vae.encode(wanted * 2 - 1).latent_dist.mean.detach())


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_versatile_diffusion(tiny: Tiny, monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    from diffusers import VersatileDiffusionDualGuidedPipeline
    from diffusers.models.transformers.dual_transformer_2d import DualTransformer2DModel

    forward = DualTransformer2DModel.forward

    def mended(self: Any, hidden_states: Tensor, encoder_attention_mask: None = None, **settings: Any) -> Any:
        """Without the mask, which its UNet passes on and it does not take."""
        return forward(self, hidden_states, **settings)

    monkeypatch.setattr(DualTransformer2DModel, "forward", mended)
    features = tiny.features()
    pipeline: Any = VersatileDiffusionDualGuidedPipeline(**tiny.make.versatile_parts(tiny.root / "versatile"))
    words = pipeline._encode_text_prompt(["", "", ""], "cpu", 1, True)
    from PIL import Image

    picture = [Image.new("RGB", (16, 16))] * 3
    seen = pipeline._encode_image_prompt(picture, "cpu", 1, True)
    told = (
        torch.cat([words[:3], features["words"]]).detach(),
        torch.cat([seen[:3], features["projected"]]).detach(),
    )
    monkeypatch.setattr(pipeline, "_encode_text_prompt", lambda *_: told[0])
    monkeypatch.setattr(pipeline, "_encode_image_prompt", lambda *_: told[1])

    def lengths(mix: float, types: tuple[str, ...]) -> None:
        for module in pipeline.image_unet.modules():
            if isinstance(module, DualTransformer2DModel):
                module.mix_ratio, module.condition_lengths = mix, [6, 5]  # 257 is written into the pipeline

    monkeypatch.setattr(pipeline, "set_transformer_params", lengths)
    stock = run(pipeline, tiny, prompt=["a"] * 3, image=picture, text_to_image_strength=share)
    same(ours(tiny, "versatile", features, text_share=share), stock)
