"""Volumes of a NIfTI file, or frames of an MGH file, one at a time and only at the voxels asked for.

The data are read in file order, so that a compressed file is unpacked once, memory holds one volume, and a file
that ends early or fails its gzip checksum is found. nibabel reads NIfTI headers; it would read a whole MGH file
for its footer, so that header is read here (surfer.nmr.mgh.harvard.edu/fswiki/FsTutorial/MghFormat).
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Generator
from dataclasses import dataclass
from io import BufferedReader
from math import prod
from pathlib import Path

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from fmri2img.errors import DamageError, InputError

MGH_HEADER = 284
"""Bytes before the data of an MGH file."""
MGH_TYPES = {0: "u1", 1: ">i4", 3: ">f4", 4: ">i2"}
NIFTI_HEADER = 348
LARGEST = 1 << 33
"""No volume or frame of this field comes near so many bytes."""


@dataclass(frozen=True)
class VolumeFile:
    """What the header of a file of volumes says.

    Attributes:
        shape: of one volume, `(x, y, z)`; `(vertices,)` for a surface.
        volumes: how many there are.
        dtype: as stored.
        offset: bytes before the first volume.
        slope, intercept: stored values are multiplied and added to with these.
    """

    path: Path
    shape: tuple[int, ...]
    volumes: int
    dtype: np.dtype
    offset: int
    slope: float = 1.0
    intercept: float = 0.0

    @property
    def voxels(self) -> int:
        """Voxels or vertices of one volume."""
        return prod(self.shape)

    def read(self, voxels: np.ndarray | None = None) -> Generator[np.ndarray, None, None]:
        """The volumes in file order, each float32 `(len(voxels),)`.

        Args:
            voxels: positions in the flattened volume (C order); None for every voxel.

        Raises:
            DamageError: the file ends early, goes on after its last volume, or fails its checksum.
        """
        positions = None if voxels is None else self._stored(voxels)
        size = self.voxels * self.dtype.itemsize
        done = 0
        try:
            with _open(self.path) as file:
                file.read(self.offset)
                while done < self.volumes:
                    data = file.read(size)
                    if len(data) < size:
                        raise EOFError(f"volume {done + 1} of {self.volumes} is cut")
                    yield self._values(data, positions)
                    done += 1
                # Reading to the end is what makes gzip compare its checksum.
                while file.read(1 << 20):
                    pass
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DamageError(
                f"{self.path} is damaged after {done} of {self.volumes} volumes: {error}. Fetch it again."
            ) from None

    def _stored(self, voxels: np.ndarray) -> np.ndarray:
        """Positions in the flattened volume in the order of the file, which is Fortran's."""
        return np.ravel_multi_index(np.unravel_index(voxels, self.shape), self.shape, order="F")

    def _values(self, data: bytes, positions: np.ndarray | None) -> np.ndarray:
        values = np.frombuffer(data, self.dtype)
        if positions is None:
            values = values.reshape(self.shape, order="F").reshape(-1)
        else:
            values = values[positions]
        values = values.astype(np.float32)
        if (self.slope, self.intercept) != (1.0, 0.0):
            values = values * np.float32(self.slope) + np.float32(self.intercept)
        return values


def open_volumes(path: Path) -> VolumeFile:
    """Read the header of `.nii`, `.nii.gz`, `.mgh` or `.mgz`.

    Raises:
        InputError: there is no such file.
        DamageError: it is no such image.
    """
    if not path.is_file():
        raise InputError(f"There is no file {path}: fetch it, or leave out what needs it.")
    try:
        with _open(path) as file:
            start = file.read(NIFTI_HEADER)
        found = _mgh(path, start) if path.suffix in (".mgh", ".mgz") else _nifti(path, start)
    except (OSError, EOFError, zlib.error, ValueError, HeaderDataError, WrapStructError) as error:
        raise DamageError(f"{path} cannot be read as NIfTI or MGH: {error}. Fetch it again.") from None
    _check_size(found)
    return found


def read_volume(path: Path) -> np.ndarray:
    """The one volume of a mask, label or statistics file: float32 in its shape.

    Raises:
        InputError: there is no such file.
        DamageError: it is damaged, or holds several volumes.
    """
    file = open_volumes(path)
    if file.volumes != 1:
        raise DamageError(f"{path} holds {file.volumes} volumes, and must hold one. Fetch it again.")
    return np.concatenate(list(file.read())).reshape(file.shape)


def _nifti(path: Path, start: bytes) -> VolumeFile:
    header = Nifti1Header(start)
    shape, dtype = tuple(int(n) for n in header.get_data_shape()), header.get_data_dtype()
    if dtype.kind not in "iuf" or not shape:
        raise ValueError(f"it holds {dtype} {shape}, and must hold numbers")
    slope, intercept = header.get_slope_inter()
    return VolumeFile(
        path,
        shape[:3],
        prod(shape[3:]),
        dtype,
        int(header.get_data_offset()),
        1.0 if slope is None else float(slope),
        0.0 if intercept is None else float(intercept),
    )


def _mgh(path: Path, start: bytes) -> VolumeFile:
    """A surface is stored as `(vertices, 1, 1, frames)`."""
    if len(start) < MGH_HEADER:
        raise EOFError("its header is cut")
    version, *numbers, code = np.frombuffer(start, ">i4", 6).tolist()
    if version != 1 or code not in MGH_TYPES:
        raise ValueError(f"version {version} and type {code} are not known")
    shape, frames = tuple(numbers[:3]), numbers[3]
    return VolumeFile(
        path, shape[:1] if shape[1:] == (1, 1) else shape, frames, np.dtype(MGH_TYPES[code]), MGH_HEADER
    )


def _check_size(file: VolumeFile) -> None:
    size = file.voxels * file.dtype.itemsize
    if min(*file.shape, file.volumes) < 1 or size > LARGEST:
        raise DamageError(
            f"{file.path} announces {file.volumes} volumes {file.shape}, which is damage. Fetch it again."
        )
    if _compressed(file.path):
        return
    stored, needed = file.path.stat().st_size, file.offset + size * file.volumes
    if stored < needed:
        raise DamageError(
            f"{file.path} is cut: its header announces {needed} bytes, and it has {stored}. Fetch it again."
        )


def _compressed(path: Path) -> bool:
    return path.suffix in (".gz", ".mgz")


def _open(path: Path) -> gzip.GzipFile | BufferedReader:
    return gzip.open(path, "rb") if _compressed(path) else open(path, "rb")
