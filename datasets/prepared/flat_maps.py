"""Flat maps of cortex, one `.npy` file each: a subject of a trial source at the pixels kept, and back to maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fmri2img.datasets.npy import unpack
from fmri2img.datasets.source import SessionTrials
from fmri2img.errors import DamageError

BLOCK_BYTES = 64 << 20
"""Bytes of the maps in a block, which is in memory at a time."""
LARGEST = 1 << 26
"""Bytes of a map file that no map of this field comes near."""


@dataclass(frozen=True)
class FlatMaps:
    """The maps of one subject.

    Attributes:
        folder: of `surf_%06d.npy`.
        numbers: int64 `(maps,)`, ascending: the maps that are used.
        nsd_ids: int64 `(maps,)`, the picture of each.
    """

    folder: Path
    numbers: np.ndarray
    nsd_ids: np.ndarray

    def path(self, position: int) -> Path:
        """The file of one map."""
        return self.folder / f"surf_{self.numbers[position]:06d}.npy"

    def read(self, position: int) -> np.ndarray:
        """One map, float32 `(height, width)`.

        Raises:
            DamageError: it is missing, damaged or no map.
        """
        path = self.path(position)
        try:
            if path.stat().st_size > LARGEST:
                raise ValueError(f"it has {path.stat().st_size} bytes, and a map has far fewer")
            values = unpack(path.read_bytes())
        except (OSError, ValueError) as error:
            raise DamageError(f"{path} cannot be read: {error}. Unpack it again.") from None
        if values.ndim != 2 or values.dtype.kind not in "fiu":
            raise DamageError(f"{path} holds {values.dtype} {values.shape}, and a map is (height, width).")
        return values.astype(np.float32)


@dataclass(frozen=True)
class FlatMapSubject:
    """One subject's maps at the pixels kept, as a `SubjectSource`."""

    maps: FlatMaps
    shape: tuple[int, int]
    pixels: np.ndarray

    @property
    def voxels(self) -> int:
        """Number of pixels kept."""
        return len(self.pixels)

    @property
    def sessions(self) -> Sequence[int]:
        """Blocks of maps, numbered from 1."""
        return range(1, -(-len(self.maps.numbers) // self._per_block) + 1)

    def voxel_table(self) -> dict[str, np.ndarray]:
        """`row` and `column` of each pixel in the map."""
        row, column = np.unravel_index(self.pixels, self.shape)
        return {"row": row.astype(np.int16), "column": column.astype(np.int16)}

    def session(self, session: int) -> SessionTrials:
        """One block of maps, `(maps, pixels)`; behaviour `map` is the number of each map's file."""
        block = np.arange((session - 1) * self._per_block, session * self._per_block)
        block = block[block < len(self.maps.numbers)]
        responses = np.empty((len(block), self.voxels), np.float32)
        for row, position in enumerate(block.tolist()):
            values = self.maps.read(position)
            where = self.maps.path(position)
            if values.shape != self.shape:
                raise DamageError(f"{where} is {values.shape}, and other maps {self.shape}. Unpack it again.")
            responses[row] = values.reshape(-1)[self.pixels]
            if not np.isfinite(responses[row]).all():
                raise DamageError(
                    f"{where}: {int((~np.isfinite(responses[row])).sum())} pixels that other maps have are not "
                    "a number. Unpack it again."
                )
        numbers = self.maps.numbers[block].astype(np.float64)
        return SessionTrials(responses, self.maps.nsd_ids[block], behaviour={"map": numbers})

    @property
    def _per_block(self) -> int:
        return max(1, BLOCK_BYTES // (4 * max(self.voxels, 1)))


def flat_map(
    values: np.ndarray, row: np.ndarray, column: np.ndarray, shape: tuple[int, int] = (256, 256)
) -> np.ndarray:
    """Put responses back into their maps: `(..., pixels)` to `(..., height, width)`, 0 at dropped pixels.

    Args:
        values: responses, for example `(repeats, pixels)`.
        row, column: of the voxel table, `(pixels,)`.
        shape: of the map.
    """
    maps = np.zeros((*values.shape[:-1], *shape), values.dtype)
    maps[..., row, column] = values
    return maps
