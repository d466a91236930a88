"""Features somebody already computed, one row a picture, read a few rows at a time.

npy, HDF5 and MATLAB v7.3 files, members of npz archives that are not compressed, and tensors of safetensors
files are read in place. Nothing is unpickled, and no size in a header is believed beyond the file's own.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from fmri2img.datasets import bfloat16
from fmri2img.datasets.array_files import open_array
from fmri2img.datasets.npy import read_header
from fmri2img.errors import InputError

WHOLE_LIMIT = 1 << 30
"""Bytes of a compressed member of an npz archive, which can only be read whole."""
HEADER_LIMIT = 100 << 20
TENSORS = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "BF16": "<u2"}


@dataclass(frozen=True)
class RowFile:
    """An array `(pictures, ...)` in a file.

    Attributes:
        path, key: where it is; the key is empty for an npy file.
        shape: of the whole array.
        dtype: its type's name, such as `float16` or `bfloat16`.
        rows: the float32 rows at some positions, in that order.
    """

    path: Path
    key: str
    shape: tuple[int, ...]
    dtype: str
    rows: Callable[[np.ndarray], np.ndarray]


def open_rows(reference: str) -> RowFile:
    """Open `FILE:KEY`, or `FILE.npy`.

    Raises:
        InputError: no such file or key, one that cannot be read safely, or an array that has no rows of numbers.
    """
    name, _, key = (reference, "", "") if reference.endswith(".npy") else reference.rpartition(":")
    path = Path(name)
    try:
        if path.suffix == ".safetensors" and path.is_file():
            found = _open_safetensors(path, key)
        elif path.suffix == ".npz" and path.is_file() and (place := _stored_member(path, key)):
            found = _mapped(path, key, *place)
        else:
            found = _open_other(path, key, reference)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{reference!r} cannot be read: {error}: bring an intact file of plain arrays."
        ) from None
    if len(found.shape) < 2 or 0 in found.shape:
        raise InputError(f"{reference!r} is {found.shape}: give features (pictures, ...), one row a picture.")
    return found


def _open_other(path: Path, key: str, reference: str) -> RowFile:
    array = open_array(Path.cwd(), reference)
    if array.dtype.kind not in "fiu":
        raise ValueError(f"it is {array.dtype} and must be numbers")
    return RowFile(path, key, array.shape, array.dtype.name, lambda p: array.rows(p).astype(np.float32))


def _mapped(path: Path, key: str, offset: int, shape: tuple[int, ...], dtype: np.dtype) -> RowFile:
    values = np.memmap(path, dtype, "r", offset, shape)
    return RowFile(path, key, shape, dtype.name, lambda p: np.asarray(values[p], np.float32))


def _stored_member(path: Path, key: str) -> tuple[int, tuple[int, ...], np.dtype] | None:
    """Offset, shape and dtype of a member that lies in the archive as it is; None where it does not."""
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        info = next((i for i in archive.infolist() if i.filename.removesuffix(".npy") == key), None)
        if info is not None and info.compress_type != zipfile.ZIP_STORED and info.file_size > WHOLE_LIMIT:
            raise ValueError(
                f"{key} is compressed, so that its {info.file_size} bytes can only be read whole: save it as npy"
            )
        if info is None or info.compress_type != zipfile.ZIP_STORED:
            return None
        file.seek(info.header_offset)
        local = file.read(30)
        start = info.header_offset + 30 + int.from_bytes(local[26:28], "little")
        start += int.from_bytes(local[28:30], "little")
        file.seek(start)
        shape, fortran, dtype, length = read_header(file.read(1 << 16))
    if fortran or dtype.kind not in "fiu":
        return None
    if (
        prod(shape) * dtype.itemsize + length != info.file_size
        or start + info.file_size > path.stat().st_size
    ):
        raise ValueError(f"{key} announces {shape} {dtype}, which its {info.file_size} bytes do not hold")
    return start + length, shape, dtype


def _open_safetensors(path: Path, key: str) -> RowFile:
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(HEADER_LIMIT, size - 8):
            raise ValueError(f"its header announces {length} bytes of {size}")
        header: dict[str, Any] = json.loads(file.read(length))
    header.pop("__metadata__", None)
    if key not in header:
        known = ", ".join(sorted(header)[:20])
        raise InputError(f"there is no tensor {key!r} in {path}: use FILE:KEY with one of {known}.")
    kind, shape = header[key]["dtype"], tuple(int(n) for n in header[key]["shape"])
    first, last = (int(n) for n in header[key]["data_offsets"])
    if kind not in TENSORS:
        raise ValueError(f"{key} is {kind} and must be one of {', '.join(TENSORS)}")
    dtype = np.dtype(TENSORS[kind])
    fits = 0 <= first <= last <= size - 8 - length and last - first == prod(shape) * dtype.itemsize
    if not fits or any(n < 1 for n in shape):
        raise ValueError(f"{key} announces {shape} {kind}, which its bytes {first} to {last} do not hold")
    if kind != "BF16":
        return _mapped(path, key, 8 + length + first, shape, dtype)
    bits = np.memmap(path, dtype, "r", 8 + length + first, shape)
    return RowFile(path, key, shape, "bfloat16", lambda p: bfloat16.from_bits(bits[p]))
