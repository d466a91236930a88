"""Tensors in and out of safetensors files. Nothing here, and nothing a user must load, is ever unpickled."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fmri2img.checkpoints_schema.manifest import MODEL_NAME, CheckpointManifest
from fmri2img.checkpoints_schema.read import check_file, read_manifest
from fmri2img.errors import DamageError, InputError
from fmri2img.files import canonical_json

if TYPE_CHECKING:
    import torch

_SUFFIX = ".safetensors"


def save_tensors(
    path: Path, tensors: Mapping[str, "torch.Tensor"], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors, of any device and layout, as one safetensors file; equal tensors give equal bytes.

    Tensors that share memory are written once each, so that every name can be read alone. The metadata go
    into the header as canonical JSON under the one key `fmri2img`: safetensors writes several keys in random
    order.
    """
    from safetensors.torch import save_file

    _check_suffix(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    seen: set[int] = set()
    whole = {}
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        storage = tensor.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != tensor.numel() * tensor.element_size():
            tensor = tensor.clone()
        seen.add(storage.data_ptr())
        whole[name] = tensor
    save_file(
        whole, path, metadata={"fmri2img": canonical_json(dict(metadata)).decode()} if metadata else None
    )


def load_tensors(
    folder: Path, name: str = MODEL_NAME, *, manifest: CheckpointManifest | None = None
) -> dict[str, "torch.Tensor"]:
    """The tensors of one file of a checkpoint, on the CPU, after its size and SHA-256 were checked.

    Raises InputError when the manifest lists no such file, DamageError when its bytes changed.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    _check_suffix(Path(name))
    manifest = manifest or read_manifest(folder)
    if name not in manifest.files:
        there = ", ".join(sorted(file for file in manifest.files if file.endswith(_SUFFIX))) or "none"
        raise InputError(f"checkpoint {folder} has no {name}: its tensor files are {there}")
    problem = check_file(folder, manifest, name)
    if problem is not None:
        raise DamageError(f"checkpoint {folder} is damaged. {problem}")
    try:
        return load_file(folder / name, device="cpu")
    except SafetensorError as error:
        raise DamageError(f"{folder / name} is not a safetensors file: {error}") from error


def _check_suffix(path: Path) -> None:
    if path.suffix != _SUFFIX:
        raise InputError(
            f"{path.name} is no safetensors file: only those are read and written, never pickles"
        )
