"""The pixels generator: what it enlarges, and that a picture does not depend on its neighbours in a batch."""

import pytest
import torch

from fmri2img.errors import InputError
from fmri2img.generators.pixels import PixelsGenerator


def low(n: int, channels: int = 3, side: int = 4) -> torch.Tensor:
    """Low-resolution predictions, some of them outside of [0, 1]."""
    return torch.randn(n, channels, side, side, generator=torch.Generator().manual_seed(n)) + 0.5


def enlarge(features: torch.Tensor, size: int = 16, smooth: bool = True) -> torch.Tensor:
    generators = [torch.Generator() for _ in range(len(features))]
    return (
        PixelsGenerator(space="p", size=size, smooth=smooth).load("cpu").generate({"p": features}, generators)
    )


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("smooth", [True, False])
def test_pictures_have_three_channels_in_zero_to_one(channels: int, smooth: bool) -> None:
    pictures = enlarge(low(5, channels), smooth=smooth)
    assert pictures.shape == (5, 3, 16, 16)
    assert pictures.min() == 0 and pictures.max() == 1


def test_one_channel_becomes_grey() -> None:
    pictures = enlarge(low(2, 1))
    assert torch.equal(pictures[:, 0], pictures[:, 1]) and torch.equal(pictures[:, 0], pictures[:, 2])


def test_without_smoothing_every_pixel_stays_a_square() -> None:
    features = low(2)
    squares = features.clamp(0, 1).repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    assert torch.equal(enlarge(features, smooth=False), squares)


def test_smooth_enlarging_keeps_a_plain_picture_plain() -> None:
    torch.testing.assert_close(enlarge(torch.full((1, 3, 4, 4), 0.3)), torch.full((1, 3, 16, 16), 0.3))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("smooth", [True, False])
def test_a_pictures_bytes_do_not_depend_on_its_batch(channels: int, smooth: bool) -> None:
    features = low(7, channels)
    whole = enlarge(features, 64, smooth)
    alone = torch.cat([enlarge(features[i : i + 1], 64, smooth) for i in range(7)])
    backwards = enlarge(features.flip(0), 64, smooth).flip(0)
    assert torch.equal(whole, alone)
    assert torch.equal(whole, backwards)


def test_half_precision_is_taken() -> None:
    assert enlarge(low(2).to(torch.bfloat16)).dtype == torch.float32


def test_a_space_the_decoder_does_not_predict_is_an_input_error() -> None:
    with pytest.raises(InputError, match=r"needs the space p, the decoder predicts \['q'\]"):
        PixelsGenerator(space="p").load("cpu").generate({"q": low(1)}, [torch.Generator()])


@pytest.mark.parametrize("shape", [(2, 12), (2, 4, 4, 4)])
def test_what_is_no_picture_is_an_input_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"needs \(1 or 3, h, w\), p is"):
        enlarge(torch.zeros(shape))
