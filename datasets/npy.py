"""Arrays as bytes: `.npy` payloads and deterministic `.npz` files, parsed without pickle.

Equal arrays give equal bytes (fixed dates, no compression), and nothing is allocated for a size that the
bytes at hand do not have.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from functools import lru_cache
from math import prod

import numpy as np

_ZIP_DATE = (1980, 1, 1, 0, 0, 0)


def pack(array: np.ndarray) -> bytes:
    """An array as the bytes of a `.npy` file (version 1.0, C order)."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def header(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    """What the bytes of `pack` begin with for an array of this shape and dtype, before its values."""
    buffer = io.BytesIO()
    described = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": tuple(int(n) for n in shape),
    }
    np.lib.format.write_array_header_1_0(buffer, described)
    return buffer.getvalue()


@lru_cache(maxsize=1024)
def _parse_header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    stream = io.BytesIO(header)
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    else:
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream)
    return shape, fortran, dtype


def read_header(data: bytes | memoryview) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Shape, Fortran order, dtype and length of the header that `data` begins with.

    Raises:
        ValueError: not a `.npy` header, or one that holds Python objects.
    """
    if len(data) < 12 or data[:6] != b"\x93NUMPY" or data[6] not in (1, 2):
        raise ValueError("it does not begin with a .npy header")
    width = 2 if data[6] == 1 else 4
    length = 8 + width + int.from_bytes(data[8 : 8 + width], "little")
    if length > min(len(data), 1 << 16):
        raise ValueError(f"its .npy header is cut ({length} bytes announced)")
    shape, fortran, dtype = _parse_header(bytes(data[:length]))
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are never loaded")
    return shape, fortran, dtype, length


def unpack(data: bytes | memoryview) -> np.ndarray:
    """The array of a `.npy` payload, as a read-only view of `data`.

    Raises:
        ValueError: the header is wrong, or announces another size than `data` has.
    """
    shape, fortran, dtype, length = read_header(data)
    if prod(shape) * dtype.itemsize != len(data) - length:
        raise ValueError(f"its header announces {shape} {dtype} but {len(data) - length} bytes follow")
    flat = np.frombuffer(data, dtype=dtype, offset=length)
    return flat.reshape(shape, order="F" if fortran else "C")


def pack_npz(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Named arrays as the bytes of an uncompressed `.npz` file, the same bytes for the same arrays."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(arrays):
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", _ZIP_DATE), pack(np.asarray(arrays[name])))
    return buffer.getvalue()


def unpack_npz(data: bytes) -> dict[str, np.ndarray]:
    """The arrays of `pack_npz`.

    Raises:
        ValueError: not such a file.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            if any(m.compress_type != zipfile.ZIP_STORED or m.file_size > len(data) for m in members):
                raise ValueError("it holds compressed members, which we never write")
            return {m.filename.removesuffix(".npy"): unpack(archive.read(m)) for m in members}
    except zipfile.BadZipFile as error:
        raise ValueError(f"it is not a whole .npz file ({error})") from None
