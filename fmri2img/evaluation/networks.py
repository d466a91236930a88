"""The networks that look at pictures: found on this machine, loaded when asked, read at a layer.

A network is anything that takes prepared pictures and gives features by layer (`Network`). AlexNet, Inception,
EfficientNet and SwAV's ResNet are torchvision's, which is an optional part of fmri2img (`pip install
'fmri2img[metrics]'`); CLIP is transformers'. Weights are looked for as files, by the names they are published under,
in the directory that FMRI2IMG_MODELS names, then where torch keeps its own; else fetched. Only tensors are read of
them. CLIP's are a folder, found as every model of the hub is (`fmri2img.weights`).
"""

import os
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fmri2img.errors import InputError
from fmri2img.evaluation.protocols import NetworkName
from fmri2img.features.loading import load_model
from fmri2img.files import sha256_file
from fmri2img.hub import CONFIG, WEIGHTS
from fmri2img.weights import MODELS, folder_of

SWAV = "https://dl.fbaipublicfiles.com/deepcluster/swav_800ep_pretrain.pth.tar"
EXTRA = "pip install 'fmri2img[metrics]'"


class Network(Protocol):
    """Prepared pictures (b, 3, size, size) float32 to features (b, ...) of every layer asked for."""

    def __call__(self, pictures: Tensor) -> Mapping[str, Tensor]: ...


Load = Callable[[NetworkName, str, Sequence[str], torch.device], Network]
"""From a network's name, its weights' name, layers and a device."""


class Hooked:
    """A module read at some of its parts, named by their path, such as `features.4`.

    Raises InputError for a part that it has not.
    """

    def __init__(self, module: nn.Module, layers: Sequence[str], device: torch.device) -> None:
        self._module, self._device = module.eval().requires_grad_(False).to(device), device
        self._seen: dict[str, Tensor] = {}
        for layer in layers:
            try:
                part = module.get_submodule(layer)
            except AttributeError as error:
                raise InputError(f"the network has no layer {layer}: {error}") from error
            part.register_forward_hook(self._keep(layer))

    def _keep(self, layer: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def keep(module: nn.Module, given: Any, made: Tensor) -> None:
            self._seen[layer] = made.clone()  # the next part may work in place

        return keep

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> Mapping[str, Tensor]:
        """Features of every layer, on the CPU."""
        self._seen.clear()
        self._module(pictures.to(self._device))
        return {layer: made.float().cpu() for layer, made in self._seen.items()}


def load_network(name: NetworkName, weights: str, layers: Sequence[str], device: torch.device) -> Network:
    """A frozen network with its weights.

    Raises:
        InputError: a library or weights that are not here; the message says how to get them.
    """
    if name == "clip":
        folder = folder_of(weights, needs=(CONFIG, WEIGHTS))
        return _clip(folder, device)
    models = _torchvision()
    if name == "swav":
        return Hooked(_swav(models.get_model("resnet50", weights=None)), layers, device)
    found = models.get_weight(f"{_ENUMS[name]}.{weights}")
    options = {"init_weights": False, "transform_input": True} if name == "inception_v3" else {}
    module = models.get_model(name, weights=None, **options)
    _put(module, _tensors(found.url), name)
    return Hooked(module, layers, device)


_ENUMS = {
    "alexnet": "AlexNet_Weights",
    "inception_v3": "Inception_V3_Weights",
    "efficientnet_b1": "EfficientNet_B1_Weights",
}


def _torchvision() -> Any:
    try:
        return import_module("torchvision.models")
    except ImportError as error:
        raise InputError(f"torchvision is not installed: {EXTRA}") from error


def _clip(folder: Path, device: torch.device) -> Network:
    """`encode_image` of OpenAI's CLIP, in float32: the class token, normed and projected, not of length one."""
    from transformers import CLIPVisionModelWithProjection

    model = load_model(CLIPVisionModelWithProjection, folder, device, torch.float32)

    @torch.no_grad()
    def look(pictures: Tensor) -> Mapping[str, Tensor]:
        return {"image_embeds": model(pixel_values=pictures.to(device)).image_embeds.float().cpu()}

    return look


def _swav(module: nn.Module) -> nn.Module:
    """A ResNet-50 with SwAV's weights (Caron et al. 2020, NeurIPS), without a classifier."""
    own = {name.removeprefix("module."): value for name, value in _tensors(SWAV).items()}
    own = {
        name: value for name, value in own.items() if not name.startswith(("projection_head", "prototypes"))
    }
    module.fc = nn.Identity()
    _put(module, own, "swav")
    return module


def _put(module: nn.Module, tensors: Mapping[str, Tensor], name: str) -> None:
    try:
        module.load_state_dict(dict(tensors))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"the weights found for {name} are of another network: {reason}") from error


def _tensors(url: str) -> dict[str, Tensor]:
    """The tensors of a file published at an address: the file of that name if it is here, else fetched."""
    name = url.rpartition("/")[2]
    path = _file(name)
    try:
        if path is None:
            found = torch.hub.load_state_dict_from_url(
                url, map_location="cpu", progress=False, check_hash=True, weights_only=True
            )
        elif path.suffix == ".safetensors":
            from safetensors.torch import load_file

            found = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, UnpicklingError, EOFError) as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise InputError(
            f"the weights {name} are not to be had ({reason}): bring that file into a directory and name it in {MODELS}"
        ) from error
    return dict(found)


def _file(name: str) -> Path | None:
    """A file of weights on this machine; its own name, or the same tensors as `.safetensors`.

    Raises InputError where the name ends in the beginning of a SHA-256, as torchvision's do, and it is another.
    """
    stem = name.partition(".")[0]
    places = [Path(torch.hub.get_dir(), "checkpoints", name)]
    if home := os.environ.get(MODELS):
        places = [Path(home, f"{stem}.safetensors"), Path(home, name), *places]
    path = next((place for place in places if place.is_file()), None)
    digest = stem.rpartition("-")[2]
    if path is None or path.name != name or "-" not in stem or sha256_file(path).startswith(digest):
        return path
    raise InputError(f"{path} is damaged: its SHA-256 does not begin with {digest}; bring it again")
