"""Features of models against the models themselves, called as their own documentation calls them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter

from fmri2img.errors import InputError
from fmri2img.features.extractors import (
    AnyExtractor,
    ClipImage,
    ClipLayers,
    ClipText,
    ConvNext,
    OpenClip,
    Vae,
    made_by,
    made_with,
)

CAPTIONS = [
    ["a red ball", "ball on grass"],
    ["a dog"],
    ["x", "y", "z"],
    ["blue"],
    ["one", "two", "three", "four"],
]


@pytest.fixture(scope="module")
def pixels(clip: Path, shown: list[np.ndarray]) -> torch.Tensor:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil.from_pretrained(clip)
    return processor([Image.fromarray(p) for p in shown], return_tensors="pt")["pixel_values"]


@pytest.fixture(scope="module")
def whole(clip: Path) -> Any:
    from transformers import CLIPModel

    return CLIPModel.from_pretrained(clip).eval()


@pytest.fixture(scope="module")
def tower(whole: Any, pixels: torch.Tensor) -> Any:
    with torch.no_grad():
        return whole.vision_model(pixel_values=pixels, output_hidden_states=True)


def close(made: np.ndarray, truth: torch.Tensor) -> None:
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, truth.detach().numpy(), rtol=2e-4, atol=2e-5)


def test_the_embedding_is_what_clip_compares_with_texts(
    clip: Path, shown: list[np.ndarray], whole: Any, pixels: torch.Tensor
) -> None:
    space = ClipImage(model=str(clip))
    made = space.load()(shown)
    assert made.shape == (5, *space.shape) == (5, 12)
    with torch.no_grad():
        out = whole(pixel_values=pixels, input_ids=torch.tensor([[52, 0, 53]]))
    truth = torch.from_numpy(made)
    close(made / np.linalg.norm(made, axis=1, keepdims=True), out.image_embeds)
    assert (truth.norm(dim=1) - 1).abs().min() > 1e-3  # and it is not made a unit vector


def test_tokens_are_normed_and_projected_as_versatile_diffusion_wants_them(
    clip: Path, shown: list[np.ndarray], whole: Any, tower: Any
) -> None:
    truth = whole.visual_projection(whole.vision_model.post_layernorm(tower.last_hidden_state))
    space = ClipImage(model=str(clip), output="tokens")
    made = space.load()(shown)
    assert space.shape == (17, 12)
    close(made, truth)
    np.testing.assert_allclose(made[:, 0], ClipImage(model=str(clip)).load()(shown), rtol=1e-4, atol=1e-5)
    scaled = ClipImage(model=str(clip), output="tokens", scale="class-token").load()(shown)
    close(scaled, truth / truth[:, :1].norm(dim=-1, keepdim=True))


def test_hidden_tokens_are_those_of_the_last_layer(clip: Path, shown: list[np.ndarray], tower: Any) -> None:
    space = ClipImage(model=str(clip), output="hidden")
    assert space.shape == (17, 16)
    close(space.load()(shown), tower.last_hidden_state)


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_layers_are_the_hidden_states_after_each_block(
    clip: Path, shown: list[np.ndarray], tower: Any, layer: int
) -> None:
    space = ClipLayers(model=str(clip), layer=layer)
    assert space.shape == (17, 16)
    close(space.load()(shown), tower.hidden_states[layer])


def test_the_mlp_of_a_layer_is_what_it_adds_last(
    clip: Path, shown: list[np.ndarray], whole: Any, tower: Any
) -> None:
    layer = whole.vision_model.encoder.layers[1]
    before = tower.hidden_states[1]
    with torch.no_grad():
        attended = before + layer.self_attn(hidden_states=layer.layer_norm1(before))[0]
    truth = tower.hidden_states[2] - attended
    close(ClipLayers(model=str(clip), layer=2, output="mlp").load()(shown), truth)


def test_a_layer_that_there_is_not_is_refused(clip: Path) -> None:
    with pytest.raises(InputError, match=r"layer 4: .* has layers 1 to 3"):
        ClipLayers(model=str(clip), layer=4).shape  # noqa: B018


def test_imagenets_statistics_take_the_place_of_clips(
    clip: Path, shown: list[np.ndarray], whole: Any
) -> None:
    made = ClipLayers(model=str(clip), layer=1, normalisation="imagenet").load()([shown[3]])
    values = torch.from_numpy(shown[3]).permute(2, 0, 1) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    rows = ((values - mean.view(3, 1, 1)) / std.view(3, 1, 1))[None]
    with torch.no_grad():
        truth = whole.vision_model(pixel_values=rows, output_hidden_states=True).hidden_states[1]
    close(made, truth)


@pytest.mark.parametrize(("given", "normed"), [("mindeye2", True), ("mindeye2", False), ("clip", True)])
def test_openclip_tokens_are_those_that_the_released_decoder_was_trained_with(
    clip: Path, shown: list[np.ndarray], whole: Any, pixels: torch.Tensor, given: Any, normed: bool
) -> None:
    # Its embedder takes pictures in [-1, 1] to [0, 1], and is given pictures in [0, 1]; then CLIP's normalisation.
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    between = pixels * std + mean
    seen = ((between + 1) / 2 - mean) / std if given == "mindeye2" else pixels
    with torch.no_grad():
        found = whole.vision_model(pixel_values=seen).last_hidden_state
        truth = whole.vision_model.post_layernorm(found) if normed else found
    space = OpenClip(model=str(clip), input=given, normed=normed)
    assert space.shape == (16, 16)
    close(space.load()(shown), truth[:, 1:])


@pytest.mark.parametrize("captions", ["mean", "first"])
@pytest.mark.parametrize("output", ["tokens", "projected", "embedding"])
def test_texts_are_those_of_the_text_tower_averaged_over_captions(
    clip: Path, shown: list[np.ndarray], whole: Any, captions: Any, output: Any
) -> None:
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(clip)

    def one(texts: list[str]) -> torch.Tensor:
        ids = tokenizer(texts, padding="max_length", max_length=16, return_tensors="pt").input_ids
        with torch.no_grad():
            out = whole.text_model(input_ids=ids)
            if output == "tokens":
                return out.last_hidden_state.mean(0)
            found = out.last_hidden_state if output == "projected" else out.pooler_output
            return whole.text_projection(found).mean(0)

    space = ClipText(model=str(clip), captions=captions, output=output)
    made = space.load(batch=4)(shown, CAPTIONS)
    assert (
        made.shape[1:]
        == space.shape
        == {"tokens": (16, 16), "projected": (16, 12), "embedding": (12,)}[output]
    )
    close(made, torch.stack([one(texts if captions == "mean" else texts[:1]) for texts in CAPTIONS]))


def test_projected_text_may_be_scaled_by_its_pooled_length(clip: Path, shown: list[np.ndarray]) -> None:
    first: dict[str, Any] = {"model": str(clip), "captions": "first"}
    plain = ClipText(**first, output="projected").load()(shown, CAPTIONS)
    pooled = ClipText(**first).load()(shown, CAPTIONS)
    scaled = ClipText(**first, output="projected", scale="pooled").load()(shown, CAPTIONS)
    np.testing.assert_allclose(scaled, plain / np.linalg.norm(pooled, axis=1)[:, None, None], rtol=1e-4)


def test_a_picture_without_captions_has_no_text_features(clip: Path, shown: list[np.ndarray]) -> None:
    with pytest.raises(InputError, match="a picture without one"):
        ClipText(model=str(clip)).load()(shown[:1], [[]])


@pytest.mark.parametrize("scaled", [True, False])
def test_latents_are_the_mean_of_the_autoencoders_posterior(
    vae: Path, shown: list[np.ndarray], scaled: bool
) -> None:
    from diffusers import AutoencoderKL

    space = Vae(model=str(vae), size=32, scaled=scaled)
    assert space.shape == (3, 16, 16) and Vae(model=str(vae)).shape == (3, 8, 8)
    made = space.load()([shown[3]])
    rows = torch.from_numpy(shown[3]).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        mean = AutoencoderKL.from_pretrained(vae).encode(rows).latent_dist.mean
    close(made, mean * 0.5 if scaled else mean)


def test_a_size_that_the_autoencoder_cannot_halve_is_refused(vae: Path) -> None:
    with pytest.raises(InputError, match=r"size 33: .* 2 times smaller"):
        Vae(model=str(vae), size=33).shape  # noqa: B018


@pytest.mark.parametrize("stage", [1, 2, 3, 4])
def test_maps_are_those_after_a_stage(convnext: Path, shown: list[np.ndarray], stage: Any) -> None:
    from transformers import ConvNextModel
    from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil

    processor = ConvNextImageProcessorPil.from_pretrained(convnext)
    rows = processor([Image.fromarray(p) for p in shown], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        model = ConvNextModel.from_pretrained(convnext).eval()
        found = model.embeddings(rows)
        for part in list(model.encoder.stages)[:stage]:
            found = part(found)
    space = ConvNext(model=str(convnext), stage=stage)
    assert found.shape[1:] == space.shape
    close(space.load()(shown), found)


KINDS: dict[str, Callable[[dict[str, Path]], Any]] = {
    "clip-image": lambda m: ClipImage(model=str(m["clip"]), output="tokens"),
    "clip-text": lambda m: ClipText(model=str(m["clip"]), output="tokens"),
    "clip-layers": lambda m: ClipLayers(model=str(m["clip"]), layer=2),
    "openclip": lambda m: OpenClip(model=str(m["clip"])),
    "vae": lambda m: Vae(model=str(m["vae"])),
    "convnext": lambda m: ConvNext(model=str(m["convnext"])),
}


@pytest.fixture
def models(clip: Path, vae: Path, convnext: Path) -> dict[str, Path]:
    return {"clip": clip, "vae": vae, "convnext": convnext}


@pytest.mark.parametrize("kind", KINDS)
def test_no_picture_depends_on_its_neighbours(
    kind: str, models: dict[str, Path], shown: list[np.ndarray]
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        loaded = KINDS[kind](models).load(batch=4)
        together = loaded(shown, CAPTIONS)
        for i in (0, 2, 4):
            alone = loaded(shown[i : i + 1], CAPTIONS[i : i + 1])
            assert alone.tobytes() == together[i : i + 1].tobytes()
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_stays_near(kind: str, models: dict[str, Path], shown: list[np.ndarray]) -> None:
    space = KINDS[kind](models)
    full, half = (space.load(dtype=dtype)(shown, CAPTIONS) for dtype in (torch.float32, torch.bfloat16))
    assert half.dtype == np.float32
    assert np.abs(half - full).max() < 0.1 * np.abs(full).max()


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_data_set_records_is_the_settings_and_the_weights(kind: str, models: dict[str, Path]) -> None:
    space = KINDS[kind](models)
    recorded = json.loads(json.dumps(space.record()))
    assert made_by(space, recorded) and made_with(space, recorded)
    assert TypeAdapter(AnyExtractor).validate_python(space.model_dump(mode="json")) == space
    assert all(len(digest) == 64 for digest in recorded["weights"].values()) and recorded["weights"]


def test_weights_under_another_name_are_the_same_and_others_under_the_same_name_are_not(
    clip: Path, tmp_path: Path
) -> None:
    recorded = ClipImage(model=str(clip)).record()
    copy = ClipImage(model=str(shutil.copytree(clip, tmp_path / "copy")))
    assert made_by(copy, recorded) and made_with(copy, recorded)
    assert not made_by(ClipImage(model=str(tmp_path / "copy"), output="tokens"), recorded)
    weights = tmp_path / "copy" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    assert not made_by(copy, recorded) and not made_with(copy, recorded)
    assert made_by(copy, {**recorded, "model": copy.model}) and not made_by(
        ClipImage(model="nobody/nothing"), recorded
    )


def test_weights_that_are_lacking_are_not_made_up(clip: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(clip, tmp_path / "clip")
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("visual_projection.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        InputError, match=r"lacks 1 weights of CLIPVisionModelWithProjection, such as visual_proj"
    ):
        ClipImage(model=str(folder)).load()
    (folder / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(InputError, match="cannot be loaded as CLIPVisionModelWithProjection"):
        ClipImage(model=str(folder)).load()


def test_parts_of_a_pipeline_are_found_in_its_subfolders(
    clip: Path, vae: Path, tmp_path: Path, shown: list[np.ndarray]
) -> None:
    from transformers import CLIPTextModel, CLIPVisionModelWithProjection

    pipeline = tmp_path / "pipeline"
    shutil.copytree(vae, pipeline / "vae")
    CLIPTextModel.from_pretrained(clip).save_pretrained(pipeline / "text_encoder")
    CLIPVisionModelWithProjection.from_pretrained(clip).save_pretrained(pipeline / "image_encoder")
    files = {
        "tokenizer": ["vocab.json", "merges.txt", "tokenizer_config.json"],
        "feature_extractor": ["preprocessor_config.json"],
    }
    for folder, file in ((folder, file) for folder, names in files.items() for file in names):
        (pipeline / folder).mkdir(exist_ok=True)
        shutil.copy(clip / file, pipeline / folder)
    name = str(pipeline)
    pairs = [
        (Vae(model=name, subfolder="vae"), Vae(model=str(vae))),
        (
            ClipText(model=name, subfolder="text_encoder", output="tokens"),
            ClipText(model=str(clip), output="tokens"),
        ),
        (ClipImage(model=name, subfolder="image_encoder"), ClipImage(model=str(clip))),
    ]
    for part, alone in pairs:
        assert part.load()(shown, CAPTIONS).tobytes() == alone.load()(shown, CAPTIONS).tobytes()
