"""What goes into the responses and stimuli columns of a shard while a data set is built."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from isal.isal_zlib import crc32
from PIL import Image

from fmri2img.datasets.manifest import BETAS
from fmri2img.datasets.npy import header
from fmri2img.datasets.png import SIGNATURE, encode_png
from fmri2img.datasets.scaling import LARGEST, Scale, fits
from fmri2img.datasets.source import TrialSource
from fmri2img.datasets.spill import TrialSpill
from fmri2img.datasets.writer import Payload, Sample
from fmri2img.errors import InputError
from fmri2img.files import canonical_json

AT_ONCE = 32
"""Pictures in memory as pixels while they are encoded."""
JPEG = b"\xff\xd8\xff"

npy_header = lru_cache(header)


@dataclass
class ResponsesColumn:
    """The responses column of one shard, normalised as it is written where the spill is not yet.

    Attributes:
        scale: of trials that were spilled as they were measured; None to store them so.
        samples: positions of each sample's trials in the spill.
        clipped: values beyond the largest float16 so far.
    """

    spill: TrialSpill
    scale: Scale | None
    keys: list[str]
    samples: list[np.ndarray]
    clipped: int = 0
    checks: list[list[int]] = field(default_factory=list)

    def members(self) -> Iterator[Sample]:
        """The samples of the column."""
        spill = self.spill
        measured = np.empty((1, *spill.trial_shape), np.float32)
        for key, positions in zip(self.keys, self.samples, strict=True):
            betas = np.empty((len(positions), *spill.trial_shape), np.float16)
            for repeat, position in enumerate(positions.tolist()):
                if spill.normalised[position]:
                    spill.read(position, betas[repeat])
                else:
                    spill.read(position, measured[0])
                    betas[repeat] = self._half(position, measured)[0]
            self.checks.append([crc32(trial.data) for trial in betas])
            trials = [self._trial(position) for position in positions.tolist()]
            record = canonical_json({"nsd_id": int(spill.nsd_id[positions[0]]), "trials": trials})
            yield key, {BETAS: (npy_header(betas.shape, betas.dtype), betas.data.cast("B")), "json": record}

    def extra(self) -> dict[str, np.ndarray]:
        """The per-sample arrays of its index, once the samples are written."""
        repeats = np.array([len(positions) for positions in self.samples], np.int64)
        sessions = np.full((len(repeats), repeats.max()), -1, np.int16)
        checks = np.zeros(sessions.shape, np.uint32)
        for row, positions in enumerate(self.samples):
            sessions[row, : len(positions)] = self.spill.session[positions]
            checks[row, : len(positions)] = self.checks[row]
        nsd_id = np.array([self.spill.nsd_id[positions[0]] for positions in self.samples], np.int64)
        return {"nsd_id": nsd_id, "repeats": repeats, "sessions": sessions, "trial_crc32": checks}

    def _trial(self, position: int) -> dict[str, Any]:
        spill = self.spill
        values = {name: _number(column[position]) for name, column in spill.behaviour.items()}
        return {"session": int(spill.session[position]), "trial": int(spill.trial[position])} | values

    def _half(self, position: int, measured: np.ndarray) -> np.ndarray:
        """One trial `(1, ...)` as float16."""
        if self.scale is not None:
            normalised, clipped = self.scale.apply(measured)
            self.clipped += clipped
            return normalised
        if not fits(measured):
            where = f"session {self.spill.session[position]}, trial {self.spill.trial[position]}"
            large = measured[np.abs(measured) > LARGEST]
            raise InputError(
                f"{self.spill.subject}, {where}: the response {large[0]:g} does not fit float16 (at "
                f"most {LARGEST:g}): rescale the responses, or build with normalise 'session'."
            )
        return measured.astype(np.float16)


def _number(value: float) -> float | int | None:
    if math.isnan(value):
        return None
    return int(value) if value.is_integer() else float(value)


def stimuli_members(source: TrialSource, keys: list[str], nsd_ids: list[int]) -> Iterator[Sample]:
    """The samples of a stimuli column: each picture, and its captions.

    Arrays become PNG; files are stored as they are, but where a shard would hold PNG and JPEG side by side,
    its JPEG pictures become PNG too: a column has one ending, and decoding a JPEG loses nothing more.
    """
    pictures: list[bytes] = []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for first in range(0, len(nsd_ids), AT_ONCE):
            some = nsd_ids[first : first + AT_ONCE]
            pictures += pool.map(picture_bytes, some, map(source.picture, some))
    ending = "jpg" if all(data.startswith(JPEG) for data in pictures) else "png"
    for key, nsd_id, data in zip(keys, nsd_ids, pictures, strict=True):
        captions = [str(caption) for caption in source.captions(nsd_id)]
        record = canonical_json({"nsd_id": nsd_id, "captions": captions})
        payloads: dict[str, Payload] = {"json": record}
        payloads[ending] = data if ending == "jpg" or data.startswith(SIGNATURE) else _as_png(nsd_id, data)
        yield key, payloads


def picture_bytes(nsd_id: int, picture: np.ndarray | bytes) -> bytes:
    """A picture as the bytes of a PNG or JPEG file.

    Raises:
        InputError: it is neither such a file nor uint8 `(height, width, 3)`.
    """
    if not isinstance(picture, bytes):
        return png_bytes(nsd_id, picture)
    if not picture.startswith((SIGNATURE, JPEG)):
        raise InputError(f"Picture {nsd_id} is neither a PNG nor a JPEG file: correct the source.")
    return picture


def png_bytes(nsd_id: int, picture: np.ndarray) -> bytes:
    """A picture as PNG bytes, without loss.

    Raises:
        InputError: it is not uint8 `(height, width, 3)`.
    """
    picture = np.asarray(picture)
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
        raise InputError(
            f"Picture {nsd_id} is {picture.dtype} {picture.shape}, and must be uint8 (height, width, 3): "
            "correct the source."
        )
    return encode_png(picture)


def _as_png(nsd_id: int, data: bytes) -> bytes:
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            return png_bytes(nsd_id, np.asarray(image.convert("RGB")))
    except OSError as error:
        raise InputError(f"Picture {nsd_id} is no whole JPEG file ({error}): correct the source.") from None
