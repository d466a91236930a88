"""What goes into the responses and stimuli columns of a shard while a data set is built."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from PIL import Image

from fmri2img.datasets.manifest import BETAS
from fmri2img.datasets.npy import pack
from fmri2img.datasets.source import TrialSource
from fmri2img.datasets.spill import TrialSpill
from fmri2img.datasets.writer import Sample
from fmri2img.errors import InputError
from fmri2img.files import canonical_json

Normalise = Literal["session", "pooled", "none"]
LARGEST = float(np.finfo(np.float16).max)


@dataclass
class ResponsesColumn:
    """The responses column of one shard, normalised as it is written."""

    subject: str
    spill: TrialSpill
    scales: dict[int, tuple[np.ndarray, np.ndarray]]
    keys: list[str]
    samples: list[np.ndarray]
    normalise: Normalise
    clipped: int = 0
    checks: list[list[int]] = field(default_factory=list)

    def members(self) -> Iterator[Sample]:
        """The samples of the column."""
        spill = self.spill
        for key, positions in zip(self.keys, self.samples, strict=True):
            betas = np.stack([self._normalised(int(position)) for position in positions])
            self.checks.append([zlib.crc32(trial.tobytes()) for trial in betas])
            trials = [{"session": spill.session[p], "trial": spill.trial[p]} for p in positions]
            record = {"nsd_id": spill.nsd_id[positions[0]], "trials": trials}
            yield key, {BETAS: pack(betas), "json": canonical_json(record)}

    def extra(self) -> dict[str, np.ndarray]:
        """The per-sample arrays of its index, once the samples are written."""
        repeats = np.array([len(positions) for positions in self.samples], np.int64)
        sessions = np.full((len(repeats), repeats.max()), -1, np.int16)
        checks = np.zeros(sessions.shape, np.uint32)
        for row, positions in enumerate(self.samples):
            sessions[row, : len(positions)] = [self.spill.session[p] for p in positions]
            checks[row, : len(positions)] = self.checks[row]
        nsd_id = np.array([self.spill.nsd_id[positions[0]] for positions in self.samples], np.int64)
        return {"nsd_id": nsd_id, "repeats": repeats, "sessions": sessions, "trial_crc32": checks}

    def _normalised(self, position: int) -> np.ndarray:
        mean, std = self.scales[self.spill.session[position]]
        response: np.ndarray = (self.spill.response(position) - mean) / std
        large = np.abs(response) > LARGEST
        if large.any():
            if self.normalise == "none":
                where = f"session {self.spill.session[position]}, trial {self.spill.trial[position]}"
                raise InputError(
                    f"{self.subject}, {where}: the response {response[large][0]:g} does not fit float16 (at "
                    f"most {LARGEST:g}): rescale the responses, or build with normalise 'session'."
                )
            self.clipped += int(large.sum())
            response = np.clip(response, -LARGEST, LARGEST)
        return response.astype(np.float16)


def stimuli_members(source: TrialSource, keys: list[str], nsd_ids: list[int]) -> Iterator[Sample]:
    """The samples of a stimuli column: each picture as PNG, and its captions."""
    for key, nsd_id in zip(keys, nsd_ids, strict=True):
        captions = [str(caption) for caption in source.captions(nsd_id)]
        record = canonical_json({"nsd_id": nsd_id, "captions": captions})
        picture = source.picture(nsd_id)
        if isinstance(picture, bytes):
            yield key, {"json": record, _ending(nsd_id, picture): picture}
        else:
            yield key, {"json": record, "png": encode_png(nsd_id, picture)}


def _ending(nsd_id: int, data: bytes) -> str:
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if data.startswith(b"\xff\xd8\xff"):
        return "jpg"
    raise InputError(f"Picture {nsd_id} is neither a PNG nor a JPEG file: correct the source.")


def encode_png(nsd_id: int, picture: np.ndarray) -> bytes:
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
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    return buffer.getvalue()
