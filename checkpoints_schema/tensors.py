"""Tensors in and out of safetensors files. Nothing here, and nothing a user must load, is ever unpickled."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fmri2img.checkpoints_schema.manifest import MODEL_NAME, CheckpointManifest
from fmri2img.checkpoints_schema.read import check_file, read_manifest
from fmri2img.errors import DamageError, InputError
from fmri2img.files import canonical_json

if TYPE_CHECKING:
    import torch

_SUFFIX = ".safetensors"
_HEADER_LIMIT = 100_000_000  # safetensors refuses longer ones too


def save_tensors(
    path: Path, tensors: Mapping[str, "torch.Tensor"], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors, of any device and layout, as one safetensors file; equal tensors give equal bytes.

    Tensors that share memory are written once each, so that every name can be read alone. The metadata go
    into the header as canonical JSON under the one key `fmri2img`: safetensors writes several keys in random
    order.
    """
    from safetensors import SafetensorError
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
    header = {"fmri2img": canonical_json(dict(metadata)).decode()} if metadata else None
    try:
        save_file(whole, path, metadata=header)
    except SafetensorError as error:
        told = re.search(r"os error (\d+)", str(error))
        if told is None:
            raise
        number = int(told[1])  # safetensors tells of a full disk in its own way
        raise OSError(number, os.strerror(number), str(path)) from error


def load_tensors(
    folder: Path, name: str = MODEL_NAME, *, manifest: CheckpointManifest | None = None
) -> dict[str, "torch.Tensor"]:
    """The tensors of one file of a checkpoint, on the CPU, after its size and SHA-256 were checked.

    Raises InputError when the manifest lists no such file, DamageError when its bytes changed.
    """
    _check_suffix(Path(name))
    manifest = manifest or read_manifest(folder)
    if name not in manifest.files:
        there = ", ".join(sorted(file for file in manifest.files if file.endswith(_SUFFIX))) or "none"
        raise InputError(f"checkpoint {folder} has no {name}: its tensor files are {there}")
    problem = check_file(folder, manifest, name)
    if problem is not None:
        raise DamageError(f"checkpoint {folder} is damaged. {problem}")
    return read_tensors(folder / name)


def read_tensors(path: Path) -> dict[str, "torch.Tensor"]:
    """The tensors of a file whose digest was checked, on the CPU. Raises DamageError when it holds none."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path, device="cpu")
    except SafetensorError as error:
        raise DamageError(f"{path} is not a safetensors file: {error}") from error


@dataclass(frozen=True)
class TensorInfo:
    """What the header of a safetensors file says of one tensor."""

    dtype: str
    shape: tuple[int, ...]
    bytes: int


def tensor_table(path: Path) -> dict[str, TensorInfo]:
    """Every tensor of a safetensors file, by its header alone: no value is read and nothing is hashed.

    Raises DamageError when the header cannot be understood.
    """
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(_HEADER_LIMIT, path.stat().st_size - 8):
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(file.read(length))
        return {
            name: TensorInfo(
                entry["dtype"], tuple(entry["shape"]), entry["data_offsets"][1] - entry["data_offsets"][0]
            )
            for name, entry in sorted(header.items())
            if name != "__metadata__"
        }
    except OSError as error:
        raise DamageError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError, TypeError, AttributeError, KeyError, IndexError) as error:
        raise DamageError(f"{path} is not a safetensors file: {error}") from error


def _check_suffix(path: Path) -> None:
    if path.suffix != _SUFFIX:
        raise InputError(
            f"{path.name} is no safetensors file: only those are read and written, never pickles"
        )
