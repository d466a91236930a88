"""Arrays in files people already have: npy, npz, MATLAB (v5 to v7.3) and HDF5, read by `FILE:KEY`.

Never unpickles, and allocates nothing that the file could not hold. What can be read in parts (npy, HDF5,
MATLAB v7.3) is; npz members and older MATLAB variables are read whole.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from fmri2img.datasets.npy import read_header
from fmri2img.errors import InputError

DEFLATE_LIMIT = 1100
"""No deflate stream unpacks to more than about 1032 times its size."""


@dataclass
class ArrayFile:
    """One array of a file, whole in memory or read by rows on demand.

    Attributes:
        reference: as the user gave it.
        shape: in the order the user knows it (MATLAB's, for MATLAB files).
    """

    reference: str
    shape: tuple[int, ...]
    dtype: np.dtype
    _values: Any
    _path: Path | None = None
    _key: str = ""
    _transposed: bool = False
    # Opened at the first read and kept: a data set asks for its pictures one by one.
    _data: Any = None

    def rows(self, positions: np.ndarray) -> np.ndarray:
        """The entries at `positions` of the first axis, in that order."""
        positions = np.asarray(positions, np.int64)
        if self._path is None:
            return np.asarray(self._values[positions])
        if len(positions) == 0:
            return np.zeros((0, *self.shape[1:]), self.dtype)
        if self._data is None:
            self._data = h5py.File(self._path, "r")[self._key]
        order = np.unique(positions)
        pieces = [self._slice(self._data, int(run[0]), int(run[-1]) + 1) for run in _runs(order)]
        if len(pieces) == 1 and np.array_equal(order, positions):
            return pieces[0]
        return np.concatenate(pieces)[np.searchsorted(order, positions)]

    def all(self) -> np.ndarray:
        """The whole array."""
        return self.rows(np.arange(self.shape[0])) if self.shape else np.asarray(self._values)

    def _slice(self, data: Any, start: int, stop: int) -> np.ndarray:
        piece = data[..., start:stop].T if self._transposed else data[start:stop]
        return np.asarray(piece)


def open_array(root: Path, reference: str) -> ArrayFile:
    """Open `FILE:KEY` (or `FILE.npy`), the file relative to `root`.

    Raises:
        InputError: no such file or key, or one that cannot be read safely; names the keys there are.
    """
    name, _, key = reference.rpartition(":") if not reference.endswith(".npy") else (reference, "", "")
    path = root / name
    if not name or not path.is_file():
        raise InputError(
            f"{reference!r}: there is no file {path}: give FILE:KEY, the file relative to {root}."
        )
    try:
        if path.suffix == ".npy":
            return _open_npy(path, reference)
        if path.suffix == ".npz":
            return _open_npz(path, key, reference)
        if h5py.is_hdf5(path):
            return _open_hdf5(path, key, reference)
        if path.suffix == ".mat":
            return _open_mat(path, key, reference)
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError) as error:
        raise InputError(
            f"{reference!r} cannot be read: {error}: bring an intact file of plain arrays."
        ) from None
    raise InputError(
        f"{reference!r}: {path.name} is no npy, npz, mat or HDF5 file: convert it to one of these."
    )


def integers(array: ArrayFile, what: str) -> np.ndarray:
    """A vector of whole numbers as int64; MATLAB's columns, rows and doubles are taken as such.

    Raises:
        InputError: it is no vector, or holds something else than whole numbers.
    """
    values = array.all()
    if values.dtype.kind not in "biuf" or sum(n != 1 for n in values.shape) > 1:
        raise InputError(
            f"{what} ({array.reference}) must be one whole number a trial: it is {values.shape}."
        )
    values = values.reshape(-1)
    whole = values.astype(np.int64) if np.isfinite(values.astype(np.float64)).all() else None
    if whole is None or (whole != values).any():
        raise InputError(f"{what} ({array.reference}) must be whole numbers, and are not all.")
    return whole


def texts(root: Path, reference: str, count: int) -> list[list[str]]:
    """Captions of `count` pictures: a JSON list of strings or lists, lines of text, or an array of strings.

    Raises:
        InputError: there are not as many as pictures.
    """
    path = root / reference
    entries: list[Any]
    try:
        if path.suffix == ".json":
            entries = json.loads(path.read_text("utf-8"))
        elif path.suffix == ".txt":
            entries = path.read_text("utf-8").splitlines()
        else:
            entries = open_array(root, reference).all().tolist()
    except (OSError, ValueError) as error:
        raise InputError(
            f"Captions {reference!r} cannot be read: {error}: give a JSON or text file."
        ) from None
    lists = [[entry] if isinstance(entry, (str, bytes)) else entry for entry in entries]
    if len(lists) != count or not all(isinstance(entry, list) for entry in lists):
        raise InputError(
            f"{reference!r} holds captions of {len(lists)} pictures, and there are {count}: give one each."
        )
    return [[text.decode() if isinstance(text, bytes) else str(text) for text in entry] for entry in lists]


def _open_npy(path: Path, reference: str) -> ArrayFile:
    values = np.load(path, mmap_mode="r", allow_pickle=False)
    return ArrayFile(reference, values.shape, values.dtype, values)


def _open_npz(path: Path, key: str, reference: str) -> ArrayFile:
    with zipfile.ZipFile(path) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        info = members.get(key)
        if info is None:
            raise _no_key(reference, key, list(members))
        with archive.open(info) as stream:
            shape, fortran, dtype, length = read_header(stream.read(1 << 16))
        size = prod(shape) * dtype.itemsize + length
        if size != info.file_size or size > DEFLATE_LIMIT * max(info.compress_size, 1) + length:
            raise ValueError(
                f"{key} announces {shape} {dtype}, which its {info.compress_size} bytes cannot hold"
            )
        data = archive.read(info)
    values = np.frombuffer(data, dtype, offset=length).reshape(shape, order="F" if fortran else "C")
    return ArrayFile(reference, values.shape, values.dtype, values)


def _open_hdf5(path: Path, key: str, reference: str) -> ArrayFile:
    with h5py.File(path, "r") as file:
        data = file.get(key) if key else None
        if not isinstance(data, h5py.Dataset):
            raise _no_key(reference, key, [name for name in file if name != "#refs#"])
        if h5py.check_string_dtype(data.dtype) is not None:
            values = np.array(data.asstr()[...].tolist())
            return ArrayFile(reference, values.shape, values.dtype, values)
        if data.dtype.kind not in "biufS" or data.external or data.is_virtual:
            raise ValueError(
                f"{key} is {data.dtype} and must be plain numbers or strings stored in this file"
            )
        shape = data.shape[::-1] if path.suffix == ".mat" else data.shape
        return ArrayFile(reference, shape, data.dtype, None, path, key, _transposed=path.suffix == ".mat")


def _open_mat(path: Path, key: str, reference: str) -> ArrayFile:
    import scipy.io  # slow to import, and only this needs it

    found = {name: shape for name, shape, _ in scipy.io.whosmat(path)}
    if key not in found:
        raise _no_key(reference, key, list(found))
    if prod(found[key]) > DEFLATE_LIMIT * path.stat().st_size:
        raise ValueError(f"{key} announces {found[key]}, which its file cannot hold")
    values = scipy.io.loadmat(path, variable_names=[key])[key]
    if values.dtype.kind not in "biufU":
        raise ValueError(f"{key} is {values.dtype} and must be plain numbers or strings")
    return ArrayFile(reference, values.shape, values.dtype, values)


def _runs(order: np.ndarray) -> list[np.ndarray]:
    """Ascending positions cut into runs without gaps, each one read of the file."""
    return np.split(order, np.flatnonzero(np.diff(order) != 1) + 1)


def _no_key(reference: str, key: str, known: list[str]) -> InputError:
    shown = ", ".join(sorted(known)[:20]) or "none"
    return InputError(
        f"{reference!r}: there is no array {key!r} in the file: use FILE:KEY with one of {shown}."
    )
