"""The simulation's own CLIP and autoencoder through the extractors: the models as called directly, and they work."""

import numpy as np
import pytest
import torch
from PIL import Image

from fmri2img.features.extractors import ClipImage, ClipText, Vae
from fmri2img.simulation.captions import write_captions
from fmri2img.simulation.scenes import draw_scene, render
from fmri2img.weights import folder_of

SCENES = 48


@pytest.fixture(scope="module")
def scenes() -> tuple[list[np.ndarray], list[list[str]]]:
    drawn = [draw_scene(7, number) for number in range(SCENES)]
    return [render(scene) for scene in drawn], [write_captions(s, 7, n) for n, s in enumerate(drawn)]


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_pictures_are_nearest_to_their_own_captions(scenes: tuple[list[np.ndarray], list[list[str]]]) -> None:
    from transformers import CLIPModel, CLIPTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    pictures, captions = scenes
    seen = unit(ClipImage(model="simulation/clip").load(batch=16)(pictures))
    read = unit(ClipText(model="simulation/clip", captions="first").load(batch=16)(pictures, captions))
    folder = folder_of("simulation/clip")
    model = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
    length = model.config.text_config.max_position_embeddings
    words = CLIPTokenizer.from_pretrained(folder)(
        [texts[0] for texts in captions], padding="max_length", max_length=length, return_tensors="pt"
    )
    rows = CLIPImageProcessorPil.from_pretrained(folder)(
        [Image.fromarray(picture) for picture in pictures], return_tensors="pt"
    )
    with torch.no_grad():
        truth = model(pixel_values=rows["pixel_values"], input_ids=words.input_ids)
    np.testing.assert_allclose(seen, truth.image_embeds.numpy(), atol=1e-5)
    np.testing.assert_allclose(read, truth.text_embeds.numpy(), atol=1e-5)
    assert ((seen @ read.T).argmax(1) == np.arange(SCENES)).mean() > 0.9


def test_latents_hold_the_picture(scenes: tuple[list[np.ndarray], list[list[str]]]) -> None:
    from diffusers import AutoencoderKL

    pictures = scenes[0][:8]
    space = Vae(model="simulation/vae")
    assert space.shape == (4, 16, 16)
    latents = torch.from_numpy(space.load(batch=8)(pictures))
    model = AutoencoderKL.from_pretrained(folder_of("simulation/vae"), torch_dtype=torch.float32)
    with torch.no_grad():
        made = model.decode(latents / model.config.scaling_factor).sample / 2 + 0.5
    truth = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 255
    error = (made.clamp(0, 1) - truth).square().mean((1, 2, 3))
    assert (-10 * error.log10()).mean() > 22  # dB
