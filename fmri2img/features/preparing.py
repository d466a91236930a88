"""Pictures as a model wants them: resized, cropped and scaled as its `preprocessor_config.json` says.

Our own: what transformers takes for a processor depends on whether torchvision is installed, and a cached feature must
not. Equal to its Pillow processors for CLIP and ConvNeXT, which the tests show.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fmri2img.errors import InputError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WHOLE = 384
"""ConvNeXT's processors crop below this size, and squash to a square from it on."""


@dataclass(frozen=True)
class Preparing:
    """From a picture (H, W, 3) uint8 to (3, height, width) float32.

    Attributes:
        edge: resize so that the shorter edge has that many pixels, which keeps the proportions; or
        size: resize to (height, width).
        crop: (height, width) cut from the middle.
        filter: Pillow's name of the resampling filter.
        mean, std: by channel, of values in [0, 1].
    """

    edge: int | None = None
    size: tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    filter: str = "BICUBIC"
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    def __call__(self, picture: np.ndarray) -> Tensor:
        """Resize, crop, scale."""
        image = Image.fromarray(picture)
        if self.edge is not None:
            image = image.resize(_proportional(image.size, self.edge), Image.Resampling[self.filter])
        elif self.size is not None:
            image = image.resize((self.size[1], self.size[0]), Image.Resampling[self.filter])
        if self.crop is not None:
            image = _middle(image, *self.crop)
        values = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        mean, std = torch.tensor(self.mean).view(3, 1, 1), torch.tensor(self.std).view(3, 1, 1)
        return (values - mean) / std

    def told(self) -> dict[str, Any]:
        """As plain data, for what a data set records."""
        return {
            key: value for key, value in json.loads(json.dumps(asdict(self))).items() if value is not None
        }


def square(size: int, **scale: Any) -> Preparing:
    """A square of that size from the middle of the picture."""
    return Preparing(edge=size, crop=(size, size), **scale)


def read_preparing(path: Path) -> Preparing:
    """What a `preprocessor_config.json` says. Raises InputError for what it says and we do not know."""
    try:
        told = json.loads(path.read_bytes())
        return _from_config(told)
    except FileNotFoundError:
        raise InputError(f"there is no {path}: bring it beside the weights") from None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise InputError(
            f"{path} does not say how pictures are prepared ({type(error).__name__}: {error}): bring it as published"
        ) from error


def _from_config(told: Mapping[str, Any]) -> Preparing:
    chosen: dict[str, Any] = {"filter": Image.Resampling(int(told.get("resample", 3))).name}
    size = told.get("size", 224)
    size = {"shortest_edge": size} if isinstance(size, int) else dict(size)
    if told.get("do_resize", True):
        convnext = str(told.get("image_processor_type", told.get("feature_extractor_type", ""))).startswith(
            "ConvNext"
        )
        if convnext or "crop_pct" in told:
            chosen |= _convnext(int(size["shortest_edge"]), told.get("crop_pct"))
        elif "shortest_edge" in size:
            chosen["edge"] = int(size["shortest_edge"])
        else:
            chosen["size"] = (int(size["height"]), int(size["width"]))
    if told.get("do_center_crop", "crop_size" in told):
        crop = told["crop_size"]
        crop = {"height": crop, "width": crop} if isinstance(crop, int) else crop
        chosen["crop"] = (int(crop["height"]), int(crop["width"]))
    if not told.get("do_rescale", True) or abs(told.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-6:
        raise ValueError("values are not divided by 255")
    if told.get("do_normalize", True):
        chosen |= {"mean": tuple(told["image_mean"]), "std": tuple(told["image_std"])}
    else:
        chosen |= {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    return Preparing(**chosen)


def _convnext(size: int, share: float | None) -> dict[str, Any]:
    """As the evaluation of Liu et al. 2022: a crop of 224 from 256, larger pictures whole."""
    if size >= WHOLE:
        return {"size": (size, size)}
    return {"edge": int(size / (share or 224 / 256)), "crop": (size, size)}


def _proportional(size: tuple[int, int], edge: int) -> tuple[int, int]:
    """(width, height) with the shorter one `edge`; the longer one is rounded down."""
    width, height = size
    return (edge, int(edge * height / width)) if width <= height else (int(edge * width / height), edge)


def _middle(image: Image.Image, height: int, width: int) -> Image.Image:
    if image.height < height or image.width < width:
        raise InputError(
            f"a picture of {image.height} × {image.width} cannot be cropped to {height} × {width}: resize it first"
        )
    top, left = (image.height - height) // 2, (image.width - width) // 2
    return image.crop((left, top, left + width, top + height))
