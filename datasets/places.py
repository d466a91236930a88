"""Where the pieces of a column lie, flat over the data set: what makes a batch of random reads cheap.

A piece is a trial of the responses, or a sample's feature. Pages of the arrays are touched only for shards
that are read, so a rank holds 12 bytes a piece (and 8 a sample) for the shards of its own lanes.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from fmri2img.datasets.index import ColumnIndex
from fmri2img.datasets.manifest import BETAS, ShardEntry
from fmri2img.datasets.npy import header


class Places:
    """Offset and crc32 of every piece of one column, for the shards that were added.

    Args:
        shards: of the manifest.
        shape: of one piece.
        dtype: in which it is stored.
        subject: whose trials the pieces are; None for a feature space, with a piece a sample.
    """

    def __init__(
        self,
        shards: Sequence[ShardEntry],
        shape: tuple[int, ...],
        dtype: np.dtype,
        subject: str | None = None,
    ) -> None:
        self.shape, self.dtype, self.trials = shape, dtype, subject is not None
        self.head = b"" if self.trials else header(shape, dtype)
        self.bytes = prod(shape) * dtype.itemsize
        mine = [shard if subject in (None, shard.subject) else None for shard in shards]
        self._samples = _starts([shard.samples if shard else 0 for shard in mine])
        self._pieces = _starts([shard.trials if shard else 0 for shard in mine]) if subject else self._samples
        self._offset = np.empty(self._pieces[-1], np.int64)
        self._crc32 = np.empty(self._pieces[-1], np.uint32)
        self._first = np.empty(self._samples[-1] if subject else 0, np.int64)
        self._added = np.zeros(len(shards), bool)

    def missing(self, shards: np.ndarray) -> list[int]:
        """The shards among these that were not added yet."""
        return np.unique(shards[~self._added[shards]]).tolist()

    def add(self, number: int, index: ColumnIndex) -> None:
        """Take in the index of one shard.

        Raises:
            ValueError: it is not that of pieces of this size, or not of as many as the manifest says.
        """
        pieces = slice(self._pieces[number], self._pieces[number + 1])
        if self.trials:
            field, repeats = index.fields.index(BETAS), index.extra["repeats"].astype(np.int64)
            if repeats.sum() != pieces.stop - pieces.start:
                rule = f"the manifest says {pieces.stop - pieces.start}"
                raise ValueError(f"it lists {repeats.sum()} trials, but {rule}")
            starts = np.cumsum(repeats) - repeats
            sample = np.repeat(np.arange(len(repeats)), repeats)
            repeat = np.arange(pieces.stop - pieces.start) - starts[sample]
            data = index.offset[:, field] + index.size[:, field] - repeats * self.bytes
            if (data < index.offset[:, field]).any():
                raise ValueError(f"a member is smaller than its trials of {self.bytes} bytes")
            self._offset[pieces] = data[sample] + repeat * self.bytes
            self._crc32[pieces] = index.extra["trial_crc32"][sample, repeat]
            self._first[self._samples[number] : self._samples[number + 1]] = pieces.start + starts
        else:
            field = index.fields.index("npy")
            if (index.size[:, field] != len(self.head) + self.bytes).any():
                raise ValueError(f"its members are not all {len(self.head) + self.bytes} bytes")
            self._offset[pieces] = index.offset[:, field]
            self._crc32[pieces] = index.crc32[:, field]
        self._added[number] = True

    def of(
        self, shards: np.ndarray, rows: np.ndarray, repeats: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Offset and crc32, each `(n,)`, of the pieces of `n` samples (their trials `repeats`, from 0)."""
        piece = self._samples[shards] + rows
        if repeats is not None:
            piece = self._first[piece] + repeats
        return self._offset[piece], self._crc32[piece]


def _starts(counts: list[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)
