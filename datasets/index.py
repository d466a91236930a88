"""The index of one column of a shard: where each member's bytes lie in the tar, and their crc32.

It is what makes a plain WebDataset tar readable at random and checkable member by member.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from fmri2img.datasets.npy import pack_npz, unpack_npz

_KINDS = {"key": "U", "fields": "U", "offset": "i", "size": "i", "crc32": "u"}
_EXTRA = {"nsd_id": "i", "repeats": "i", "sessions": "i", "trial_crc32": "u"}


@dataclass(frozen=True, eq=False)
class ColumnIndex:
    """Index of `n` samples with `m` fields each.

    Attributes:
        keys: (n,) strings.
        fields: the `m` file endings of a sample, such as `betas.npy`.
        offset, size: (n, m) int64, bytes from the start of the tar.
        crc32: (n, m) uint32 of each payload.
        extra: per-sample arrays of the responses column: `nsd_id` (n,), `repeats` (n,), `sessions` (n, R)
            padded with -1, and `trial_crc32` (n, R), the crc32 of each trial's row of the array.
    """

    keys: np.ndarray
    fields: list[str]
    offset: np.ndarray
    size: np.ndarray
    crc32: np.ndarray
    extra: dict[str, np.ndarray] = field(default_factory=dict)

    def names(self) -> list[str]:
        """Every member's name in the order of the tar."""
        return [f"{key}.{ending}" for key in self.keys.tolist() for ending in self.fields]

    def pack(self) -> bytes:
        """The bytes of the index file."""
        own = {"key": self.keys, "fields": np.array(self.fields), "offset": self.offset, "size": self.size}
        return pack_npz(own | {"crc32": self.crc32} | self.extra)


def unpack_index(data: bytes, *, column: str, samples: int, tar_bytes: int) -> ColumnIndex:
    """Parse an index file and check that it can be that of a tar of `samples` samples and `tar_bytes` bytes.

    Raises:
        ValueError: it cannot; the message says which rule it breaks.
    """
    arrays = unpack_npz(data)
    expected = _KINDS | (_EXTRA if column == "responses" else {})
    if set(arrays) != set(expected):
        raise ValueError(f"it holds {sorted(arrays)} instead of {sorted(expected)}")
    for name, kind in expected.items():
        if arrays[name].dtype.kind != kind:
            raise ValueError(f"{name} is {arrays[name].dtype}")
    members = (samples, len(arrays["fields"]))
    if arrays["fields"].ndim != 1 or arrays["key"].shape != (samples,):
        raise ValueError(f"it lists {len(arrays['key'])} samples but the manifest says {samples}")
    if any(arrays[name].shape != members for name in ("offset", "size", "crc32")):
        raise ValueError(f"offset, size and crc32 are not all {members}")
    offset, size = arrays["offset"].astype(np.int64), arrays["size"].astype(np.int64)
    if offset.min() < 0 or size.min() < 0 or size.max() > tar_bytes or (offset + size).max() > tar_bytes:
        raise ValueError(f"it points beyond the {tar_bytes} bytes of its tar")
    extra = {name: arrays[name] for name in expected if name in _EXTRA}
    if extra:
        width = extra["sessions"].shape[-1]
        shapes = {"nsd_id": (samples,), "repeats": (samples,), "sessions": (samples, width)}
        for name, shape in (shapes | {"trial_crc32": (samples, width)}).items():
            if extra[name].shape != shape:
                raise ValueError(f"{name} is {extra[name].shape} instead of {shape}")
        if extra["repeats"].min() < 1 or extra["repeats"].max() > width:
            raise ValueError(f"repeats are not all between 1 and {width}")
    return ColumnIndex(arrays["key"], arrays["fields"].tolist(), offset, size, arrays["crc32"], extra)
