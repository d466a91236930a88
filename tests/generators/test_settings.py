"""What a generator's settings and folders must be, told in one sentence before any long work."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load_file, save_file

from fmri2img.errors import InputError
from fmri2img.generators import AnyGenerator

Tiny = Any
READ: TypeAdapter[Any] = TypeAdapter(AnyGenerator)
SD = {"kind": "sd", "model": "m", "text": "t"}
VAE = {"kind": "vae", "model": "v", "latents": "low"}


@pytest.mark.parametrize(
    ("told", "rule"),
    [
        (SD | {"strength": 0.5}, "strength 0.5 needs a start"),
        (SD | {"strength": 0.01, "steps": 20, "latents": "l"}, "strength 0.01 of 20 steps is no step"),
        (SD | {"latents": "l", "base": VAE}, "not both"),
        (SD | {"prompt": "a cat"}, "reads the space t and the words 'a cat'"),
        (SD | {"sampler": "fast"}, "'ddim', 'ddpm', 'euler'"),
        ({"kind": "refine", "model": "m", "prompt": "a cat"}, "needs a start"),
        ({"kind": "refine", "model": "m", "strength": 1}, "refine needs a base"),
        (
            {"kind": "versatile", "model": "m", "image": "i", "text_share": 0.4},
            "needs a space of text tokens",
        ),
        (
            {"kind": "ip-adapter", "model": "m", "image": "i", "adapter": "a", "weights": "a.bin"},
            "safetensors",
        ),
        ({"kind": "oil painting"}, "does not match any of the expected tags"),
    ],
)
def test_settings_that_would_lie_are_refused(told: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValidationError, match=rule):
        READ.validate_python(told)


def test_nested_generators_read_the_spaces_of_all() -> None:
    refined = {
        "kind": "refine",
        "model": "m",
        "text": "t",
        "base": {"kind": "unclip", "model": "u", "image": "i"},
    }
    blended = READ.validate_python({"kind": "blend", "base": refined, "low": VAE})
    assert blended.spaces == ["t", "i", "low"]


def test_strength_0_gives_the_start_back(tiny: Tiny) -> None:
    features = tiny.features()
    made = tiny.load("sd image-to-image", strength=0).generate(features, tiny.seeded(1, 2, 3))
    assert torch.equal(made, tiny.load("vae").generate(features, []))


def test_more_strength_goes_further_from_the_start(tiny: Tiny) -> None:
    features = tiny.features()
    start = tiny.load("vae").generate(features, [])
    apart = [
        (tiny.load("sd image-to-image", strength=s).generate(features, tiny.seeded(1, 2, 3)) - start)
        .abs()
        .mean()
        for s in (0.25, 0.5, 1.0)
    ]
    assert apart[0] < apart[1] < apart[2]


def test_a_blend_is_the_share_of_each(tiny: Tiny) -> None:
    features = tiny.features()
    low = {"kind": "pixels", "space": "pixels", "size": 16}
    sharp = tiny.load("sd", steps=2).generate(features, tiny.seeded(1, 2, 3))
    blurry = tiny.load("pixels").generate(features, [])
    made = tiny.load("blend", low=low, share=0.75).generate(features, tiny.seeded(1, 2, 3))
    torch.testing.assert_close(made, 0.75 * sharp + 0.25 * blurry)


def test_levels_lighten_as_told(tiny: Tiny) -> None:
    features = tiny.features()
    plain = tiny.load("token unclip").generate(features, tiny.seeded(1, 2, 3))
    lighter = tiny.load("token unclip", levels=(0.8, 0.2)).generate(features, tiny.seeded(1, 2, 3))
    torch.testing.assert_close(lighter, (0.8 * (2 * plain - 1) + 0.2).clamp(0, 1))


def test_embeddings_get_the_length_of_real_ones_and_keep_their_direction(tiny: Tiny) -> None:
    stretching = tiny.load("unclip", length="typical", noise_level=0)
    plain = tiny.load("unclip", noise_level=0)
    mean, std = plain.mean, plain.std
    z = torch.randn(3, 10, generator=torch.Generator().manual_seed(5))
    typical = z * 10**0.5 / z.norm(dim=1, keepdim=True)
    right = plain.generate({"image": mean + std * typical}, tiny.seeded(1, 2, 3))
    for shrunk in (0.01, 0.4, 1.0, 3.0):
        made = stretching.generate({"image": mean + std * (shrunk * z)}, tiny.seeded(1, 2, 3))
        torch.testing.assert_close(made, right, atol=1e-4, rtol=0)
    assert not torch.allclose(
        plain.generate({"image": mean + std * z}, tiny.seeded(1, 2, 3)), right, atol=1e-3
    )


def copied(tiny: Tiny, name: str, folder: Path) -> Path:
    shutil.copytree(tiny.root / name, folder)
    return folder


def test_a_missing_component_is_named(tiny: Tiny, tmp_path: Path) -> None:
    folder = copied(tiny, "sd", tmp_path / "sd")
    shutil.rmtree(folder / "unet")
    with pytest.raises(InputError, match=r"lacks unet/config\.json, unet/\*\.safetensors"):
        tiny.config("sd", model=str(folder)).load("cpu")


def test_a_missing_weight_is_not_replaced_by_noise(tiny: Tiny, tmp_path: Path) -> None:
    folder = copied(tiny, "sd", tmp_path / "sd")
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    del tensors["conv_in.weight"]
    save_file(tensors, file)
    with pytest.raises(
        InputError, match=r"unet lacks 1 weights of UNet2DConditionModel, such as conv_in\.weight"
    ):
        tiny.config("sd", model=str(folder)).load("cpu")


def test_an_emptied_tokenizer_is_named(tiny: Tiny, tmp_path: Path) -> None:
    folder = copied(tiny, "sd", tmp_path / "sd")
    for file in (folder / "tokenizer").iterdir():
        if file.name != "tokenizer_config.json":
            file.unlink()
    with pytest.raises(InputError, match=r"sd/tokenizer holds no tokenizer: bring tokenizer\.json"):
        tiny.config("sd", model=str(folder)).load("cpu")


def test_a_cut_file_is_named(tiny: Tiny, tmp_path: Path) -> None:
    folder = copied(tiny, "sd", tmp_path / "sd")
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match="vae cannot be loaded as AutoencoderKL"):
        tiny.config("vae", model=str(folder)).load("cpu")


def test_a_scheduler_we_do_not_know_asks_for_a_sampler(tiny: Tiny, tmp_path: Path) -> None:
    folder = copied(tiny, "sd", tmp_path / "sd")
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"_class_name": "RePaintScheduler"}))
    with pytest.raises(InputError, match="scheduler is RePaintScheduler: name a sampler, one of ddim"):
        tiny.config("sd", model=str(folder)).load("cpu")
    tiny.config("sd", model=str(folder), sampler="ddim").load("cpu")


@pytest.mark.parametrize(
    ("case", "changes", "rule"),
    [
        ("unclip", {"model": "sd"}, "is no unCLIP"),
        ("unclip", {"model": "sdxl"}, "not the 4 of an SDXL unCLIP"),
        ("token unclip", {"length": "typical"}, "reads no words, no noise_level and no length"),
        ("unclip", {"noise_level": 1000}, "noise_level 1000 must be below 1000"),
        ("sdxl", {"pooled": None}, "is an SDXL, which reads a pooled prompt embedding"),
        ("sd", {"pooled": "pooled"}, "reads no pooled prompt embedding"),
        ("controlnet", {"model": "sdxl", "text": None}, "was made for another model"),
        ("ip-adapter", {"model": "sdxl"}, "is no IP-Adapter for"),
        ("ip-adapter", {"adapter": "sd"}, "lacks models/ip-adapter_sd15.safetensors"),
    ],
)
def test_parts_that_do_not_fit_are_refused(tiny: Tiny, case: str, changes: dict[str, Any], rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        tiny.config(case, **changes).load("cpu")
