"""How each published code measures pictures: sizes, interpolation, layers, weights. Where they differ, by name.

Read from the evaluation of MindEye2 (`final_evaluations.ipynb` of github.com/MedARC-AI/MindEyeV2), Brain-Diffuser
(`eval_extract_features.py`, `evaluate_reconstruction.py` of github.com/ozcelikfu/brain-diffuser) and NeuroPictor
(`eval_metrics.py` of github.com/jingyanghuo/neuropictor), with the versions their environments pin: these decide what
`Resize` does with a shrinking picture (torchvision before 0.17 samples it), what SSIM means (scikit-image 0.20), and
which weights a name stands for.
"""

from collections.abc import Callable
from typing import Literal, get_args

import torch
from pydantic import BaseModel, ConfigDict

from fmri2img.errors import InputError
from fmri2img.evaluation.metrics_pictures import Array, Filter, Prepare, Resizing

ProtocolName = Literal["mindeye2", "brain-diffuser", "neuropictor"]
PROTOCOLS: tuple[ProtocolName, ...] = get_args(ProtocolName)
NetworkName = Literal["alexnet", "inception_v3", "efficientnet_b1", "swav", "clip"]

SCALES = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}


class Look(BaseModel):
    """One metric by a network: what it is shown, which layer is read, and how two pictures are compared by it.

    Attributes:
        metric: the metric's name; `label` is what tables call it.
        weights: torchvision's name of them; the hub's for `clip`.
        layer: the module whose output is read, by its path in the network.
        size, filter: what the picture is resized to.
        scale: which mean and standard deviation of colours are subtracted and divided by.
        score: `two-way` identification, or the mean correlation `distance`, of which lower is better.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: str
    label: str
    network: NetworkName
    weights: str
    layer: str
    size: int
    filter: Filter = "bilinear"
    scale: Literal["imagenet", "clip"] = "imagenet"
    score: Literal["two-way", "distance"] = "two-way"


class Protocol(BaseModel):
    """All that a published code does to pictures before and while it measures them.

    Attributes:
        first: size that everything is resized to before anything else.
        by, pixel_filter: how it resizes (see `Resizing`), and with which filter for PixCorr and SSIM.
        ssim: which meaning its environment's scikit-image gives SSIM.
        pools: `published`, those its seed draws; None where it does not measure retrieval.
        padded: whether a picture with fewer than three repeats is averaged over three with one of them again.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ProtocolName
    first: int | None
    by: Literal["tensor", "pillow"]
    size: int = 425
    pixel_filter: Filter
    ssim: Literal["2d", "columns"]
    looks: tuple[Look, ...]
    pools: Literal["published"] | None = None
    padded: bool = False

    def prepare_pixels(self) -> Prepare:
        """What PixCorr and SSIM compare: pictures (n, 3, H, W) to float64 (n, 3, size, size)."""
        last = Resizing(self.size, self.pixel_filter, self.by)
        return lambda pictures: last(self._before(pictures))

    def prepare(self, look: Look) -> Callable[[Array], torch.Tensor]:
        """What a network sees: pictures (n, 3, H, W) to float32 (n, 3, look.size, look.size)."""
        last = Resizing(look.size, look.filter, self.by)
        mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in SCALES[look.scale])
        return lambda pictures: ((last(self._before(pictures)) - mean) / std).float()

    def _before(self, pictures: Array) -> Array:
        return pictures if self.first is None else Resizing(self.first, "bilinear", self.by)(pictures)

    def order(self) -> list[str]:
        """Its metrics of pictures, in the order in which the field's tables have them."""
        return ["pixcorr", "ssim" if self.ssim == "2d" else "ssim_columns", *(k.metric for k in self.looks)]


def _looks(
    alexnet: int, inception: int, efficientnet: int, *, clip: Filter, effnet_weights: str
) -> tuple[Look, ...]:
    hub, v1 = "openai/clip-vit-large-patch14", "IMAGENET1K_V1"
    made = [
        Look(
            metric="alexnet2",
            label="AlexNet(2)",
            network="alexnet",
            weights=v1,
            layer="features.4",
            size=alexnet,
        ),
        Look(
            metric="alexnet5",
            label="AlexNet(5)",
            network="alexnet",
            weights=v1,
            layer="features.11",
            size=alexnet,
        ),
        Look(
            metric="inception",
            label="Inception",
            network="inception_v3",
            weights=v1,
            layer="avgpool",
            size=inception,
        ),
        Look(
            metric="clip",
            label="CLIP",
            network="clip",
            weights=hub,
            layer="image_embeds",
            size=224,
            filter=clip,
            scale="clip",
        ),
        Look(
            metric="effnet",
            label="EffNet-B",
            network="efficientnet_b1",
            weights=effnet_weights,
            layer="avgpool",
            size=efficientnet,
            score="distance",
        ),
        Look(
            metric="swav",
            label="SwAV",
            network="swav",
            weights="swav_800ep_pretrain",
            layer="avgpool",
            size=224,
            score="distance",
        ),
    ]
    return tuple(made)


_TABLE = {
    "mindeye2": Protocol(
        name="mindeye2",
        first=256,
        by="tensor",
        pixel_filter="bilinear",
        ssim="2d",
        looks=_looks(256, 342, 255, clip="bilinear", effnet_weights="IMAGENET1K_V2"),
        pools="published",
        padded=True,
    ),
    # Pillow's default filter is bicubic, torchvision's on Pillow pictures bilinear. `efficientnet_b1(weights=True)` in
    # torchvision 0.13 are the first weights; those called DEFAULT are the second.
    "brain-diffuser": Protocol(
        name="brain-diffuser",
        first=None,
        by="pillow",
        pixel_filter="bicubic",
        ssim="columns",
        looks=_looks(224, 224, 224, clip="bilinear", effnet_weights="IMAGENET1K_V1"),
    ),
    "neuropictor": Protocol(
        name="neuropictor",
        first=256,
        by="tensor",
        pixel_filter="bilinear",
        ssim="2d",
        looks=_looks(256, 342, 255, clip="bicubic", effnet_weights="IMAGENET1K_V2"),
    ),
}


def protocol(name: str) -> Protocol:
    """A protocol by its name. Raises InputError for another."""
    if name not in _TABLE:
        raise InputError(f"no protocol is called {name!r}: use one of {', '.join(_TABLE)}")
    return _TABLE[name]
