"""Pictures are prepared as the processors of transformers prepare them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fmri2img.errors import InputError
from fmri2img.features.preparing import Preparing, read_preparing, square

STATISTICS: dict[str, Any] = {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28]}
CLIP = STATISTICS | {"do_center_crop": True, "do_resize": True, "do_normalize": True}


def read(folder: Path, told: dict[str, Any]) -> Preparing:
    (folder / "preprocessor_config.json").write_text(json.dumps(told))
    return read_preparing(folder / "preprocessor_config.json")


@pytest.mark.parametrize(
    "told",
    [
        {"size": 32, "crop_size": 32, "resample": 3},  # as in CLIP's first configurations
        {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}, "resample": 3},
        {"size": {"shortest_edge": 40}, "crop_size": {"height": 24, "width": 30}, "resample": 2},
        {"size": {"height": 28, "width": 36}, "crop_size": {"height": 28, "width": 36}, "resample": 1},
    ],
)
def test_pictures_are_prepared_as_by_clips_processor(
    tmp_path: Path, told: dict[str, Any], shown: list[np.ndarray]
) -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    ours, theirs = read(tmp_path, CLIP | told), CLIPImageProcessorPil(**CLIP | told)
    for picture in shown:
        truth = theirs(Image.fromarray(picture), return_tensors="np")["pixel_values"][0]
        np.testing.assert_allclose(ours(picture).numpy(), truth, atol=2e-6)


@pytest.mark.parametrize("size", [32, 384])
def test_pictures_are_prepared_as_by_convnexts_processor(
    tmp_path: Path, size: int, shown: list[np.ndarray]
) -> None:
    from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil

    told = STATISTICS | {"size": {"shortest_edge": size}, "crop_pct": 0.875, "resample": 3}
    ours, theirs = read(tmp_path, told), ConvNextImageProcessorPil(**told)
    for picture in shown:
        truth = theirs(Image.fromarray(picture), return_tensors="np")["pixel_values"][0]
        np.testing.assert_allclose(ours(picture).numpy(), truth, atol=2e-6)


def test_a_square_is_the_middle_of_the_picture() -> None:
    picture = np.zeros((8, 12, 3), np.uint8)
    picture[:, 2:10] = 255
    assert (square(8)(picture) == 1).all()


def test_what_is_told_of_it_is_plain_and_complete() -> None:
    made = square(8, mean=(0.1, 0.2, 0.3))
    told = made.told()
    assert json.loads(json.dumps(told)) == told
    assert told["crop"] == [8, 8] and told["mean"] == [0.1, 0.2, 0.3] and told["filter"] == "BICUBIC"


@pytest.mark.parametrize(
    "told",
    [
        "no json",
        [1],
        {"size": {"longest_edge": 3}},
        CLIP | {"do_rescale": False},
        CLIP | {"rescale_factor": 1},
    ],
)
def test_a_configuration_that_we_do_not_know_is_refused(tmp_path: Path, told: Any) -> None:
    path = tmp_path / "preprocessor_config.json"
    path.write_text(told if isinstance(told, str) else json.dumps(told))
    with pytest.raises(InputError, match="does not say how pictures are prepared"):
        read_preparing(path)
    with pytest.raises(InputError, match=r"there is no .*other\.json"):
        read_preparing(tmp_path / "other.json")


def test_a_picture_that_is_too_small_to_crop_is_refused() -> None:
    with pytest.raises(InputError, match="4 × 9 cannot be cropped to 8 × 8"):
        Preparing(crop=(8, 8))(np.zeros((4, 9, 3), np.uint8))
