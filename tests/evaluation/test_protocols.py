"""Protocols: what each does to a picture, step by step, and how they differ."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from fmri2img.errors import InputError
from fmri2img.evaluation.protocols import PROTOCOLS, SCALES, protocol

Smooth = Callable[..., np.ndarray]


@pytest.fixture
def eight_bit(smooth: Smooth) -> np.ndarray:
    """A picture (1, 3, 300, 300) uint8, larger than some sizes and smaller than others."""
    return (smooth(1, size=300) * 255).round().astype(np.uint8)


def tensor_resize(pictures: torch.Tensor, size: int, mode: str = "bilinear") -> torch.Tensor:
    """torchvision's `Resize` on tensors before 0.17, in single precision as the published codes have it."""
    return functional.interpolate(pictures, (size, size), mode=mode, align_corners=False)


@pytest.mark.parametrize("name", ["mindeye2", "neuropictor"])
@pytest.mark.parametrize("metric", ["alexnet2", "inception", "clip", "effnet", "swav"])
def test_tensors_are_resized_twice_and_scaled(eight_bit: np.ndarray, name: str, metric: str) -> None:
    chosen = next(k for k in protocol(name).looks if k.metric == metric)
    sizes = {"alexnet2": 256, "inception": 342, "clip": 224, "effnet": 255, "swav": 224}
    mode = "bicubic" if (name, metric) == ("neuropictor", "clip") else "bilinear"
    first = tensor_resize(torch.from_numpy(eight_bit).float() / 255, 256)
    wanted = tensor_resize(first, sizes[metric], mode)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in SCALES["clip" if metric == "clip" else "imagenet"])
    found = protocol(name).prepare(chosen)(eight_bit)
    assert found.dtype == torch.float32
    assert torch.allclose(found, (wanted - mean) / std, atol=1e-5)


def test_brain_diffuser_shows_every_network_eight_bit_pictures_of_224_pixels(eight_bit: np.ndarray) -> None:
    how = protocol("brain-diffuser")
    mean, std = (np.array(v) for v in SCALES["imagenet"])
    image = Image.fromarray(eight_bit[0].transpose(1, 2, 0)).resize((224, 224), Image.Resampling.BILINEAR)
    wanted = (np.asarray(image) / 255 - mean) / std
    for chosen in how.looks[1:4]:
        found = how.prepare(chosen)(eight_bit[:1])[0].numpy().transpose(1, 2, 0)
        assert found.shape == (224, 224, 3)
        if chosen.scale == "imagenet":
            assert found == pytest.approx(wanted, abs=1e-5)


def test_pixels_are_compared_at_425_pixels(eight_bit: np.ndarray) -> None:
    for name in PROTOCOLS:
        assert protocol(name).prepare_pixels()(eight_bit).shape == (1, 3, 425, 425)
    small = eight_bit[:, :, ::5, ::5]
    grown = Image.fromarray(small[0].transpose(1, 2, 0)).resize((425, 425))  # Pillow's default is bicubic
    found = protocol("brain-diffuser").prepare_pixels()(small)[0].numpy().transpose(1, 2, 0)
    assert found * 255 == pytest.approx(np.asarray(grown))


def test_the_protocols_differ_in_what_is_known_to_differ() -> None:
    a, b, c = (protocol(name) for name in ("mindeye2", "brain-diffuser", "neuropictor"))
    assert [how.ssim for how in (a, b, c)] == ["2d", "columns", "2d"]
    assert [how.order()[1] for how in (a, b, c)] == ["ssim", "ssim_columns", "ssim"]
    weights = [next(k.weights for k in how.looks if k.metric == "effnet") for how in (a, b, c)]
    assert weights == ["IMAGENET1K_V2", "IMAGENET1K_V1", "IMAGENET1K_V2"]
    assert (a.padded, b.padded) == (True, False) and (a.pools, b.pools) == ("published", None)
    differ = [x.metric for x, y in zip(a.looks, c.looks, strict=True) if x != y]
    assert differ == ["clip"]


def test_all_protocols_read_the_same_layers_and_scores() -> None:
    wanted = {
        "alexnet2": ("features.4", "two-way"),
        "alexnet5": ("features.11", "two-way"),
        "inception": ("avgpool", "two-way"),
        "clip": ("image_embeds", "two-way"),
        "effnet": ("avgpool", "distance"),
        "swav": ("avgpool", "distance"),
    }
    for name in PROTOCOLS:
        assert {k.metric: (k.layer, k.score) for k in protocol(name).looks} == wanted


def test_an_unknown_protocol_is_refused() -> None:
    with pytest.raises(InputError, match="'mindeye9': use one of mindeye2, brain-diffuser, neuropictor"):
        protocol("mindeye9")
