"""The 73,000 pictures of NSD and their captions.

Pictures are in `nsd_stimuli.hdf5`; captions are COCO's, found through `nsd_stim_info_merged.csv`, which says for
each nsd_id (counted from 0) which COCO picture it was cut from. The COCO files are no part of the release: without
them there are no captions.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from PIL import Image

from fmri2img.datasets.nsd.layout import NsdLayout
from fmri2img.errors import DamageError, InputError

KEY = "imgBrick"
COLUMNS = ("nsdId", "cocoId", "cocoSplit")
PIECE = 1 << 22
LONGEST = 1 << 20
"""No annotation of COCO's caption files comes near so many characters."""


class Stimuli:
    """Pictures by nsd_id, made smaller when asked.

    Args:
        layout: the release.
        size: pixels of a side; None keeps 425. Pictures are made smaller with Lanczos' filter.

    Raises:
        InputError: no such file, or a size that is not from 1 to the pictures' own.
        DamageError: it is no HDF5 file, or holds no pictures.
    """

    def __init__(self, layout: NsdLayout, *, size: int | None = None) -> None:
        self.path = layout.stimuli
        try:
            self._file = h5py.File(self.path, "r")
            self._data = self._file.get(KEY)
        except (OSError, RuntimeError, KeyError) as error:
            raise DamageError(f"{self.path} cannot be read: {error}. Fetch it again.") from None
        data = self._data
        whole = isinstance(data, h5py.Dataset) and not data.external and not data.is_virtual
        if not whole or data.ndim != 4 or data.shape[3] != 3 or data.dtype != np.uint8:
            raise DamageError(
                f"{self.path} must hold {KEY!r}, uint8 (pictures, height, width, 3), and does not. Fetch it again."
            )
        self.count, side = data.shape[0], min(data.shape[1:3])
        if size is not None and not 1 <= size <= side:
            raise InputError(f"A picture size of {size} is not possible: use 1 to {side} pixels.")
        self.size = size

    def picture(self, nsd_id: int) -> np.ndarray:
        """uint8 `(height, width, 3)`.

        Raises:
            InputError: there is no such picture.
            DamageError: its bytes cannot be read.
        """
        if not 0 <= nsd_id < self.count:
            raise InputError(f"There is no picture {nsd_id} in {self.path}: it has 0 to {self.count - 1}.")
        try:
            picture = self._data[nsd_id]
        except (OSError, RuntimeError) as error:
            raise DamageError(f"{self.path}, picture {nsd_id}: {error}. Fetch it again.") from None
        if self.size is None or picture.shape[:2] == (self.size, self.size):
            return picture
        small = Image.fromarray(picture).resize((self.size, self.size), Image.Resampling.LANCZOS)
        return np.asarray(small)


def read_captions(layout: NsdLayout, nsd_ids: Iterable[int]) -> dict[int, list[str]] | None:
    """Captions of some pictures by nsd_id; None where there is neither of COCO's caption files.

    Raises:
        InputError: one of the files is missing and is needed, or the table lacks a column or a picture.
        DamageError: a file is damaged.
    """
    wanted = set(nsd_ids)
    splits = ("train2017", "val2017")
    paths = {split: layout.find_captions(split) for split in splits}
    if not any(paths.values()):
        return None
    coco = _coco_ids(layout.stimulus_table, wanted)
    texts: dict[tuple[str, int], list[str]] = {}
    for split in sorted({split for split, _ in coco.values()}):
        path = paths.get(split)
        if path is None:
            raise InputError(
                f"captions_{split}.json is missing beside its sibling in {layout.root}: bring it with: fmri2img data "
                f"fetch nsd {layout.root} --parts captions, or remove both to build without captions."
            )
        needed = {number for of, number in coco.values() if of == split}
        for annotation in _annotations(path):
            number = annotation.get("image_id")
            if number in needed:
                texts.setdefault((split, number), []).append(str(annotation.get("caption", "")).strip())
    return {nsd_id: texts.get(key, []) for nsd_id, key in coco.items()}


def _coco_ids(path: Path, wanted: set[int]) -> dict[int, tuple[str, int]]:
    """(split, COCO id) of each picture wanted."""
    found: dict[int, tuple[str, int]] = {}
    try:
        with open(path, newline="", encoding="utf-8") as file:
            table = csv.DictReader(file)
            missing = [name for name in COLUMNS if name not in (table.fieldnames or [])]
            if missing:
                raise DamageError(
                    f"{path} has no column {missing[0]!r}, only {', '.join(table.fieldnames or [])[:200]}. "
                    "Fetch it again."
                )
            for row in table:
                nsd_id = int(row["nsdId"])
                if nsd_id in wanted:
                    found[nsd_id] = (row["cocoSplit"], int(row["cocoId"]))
    except (ValueError, TypeError, csv.Error) as error:
        raise DamageError(
            f"{path} is damaged after {len(found)} pictures: {error}. Fetch it again."
        ) from None
    if lost := wanted - set(found):
        raise DamageError(
            f"{path} has no row for picture {min(lost)} ({len(lost)} are missing). Fetch it again."
        )
    return found


def _annotations(path: Path) -> Iterator[dict[str, Any]]:
    """The entries of the list `annotations` of a JSON file, read piece by piece."""
    decoder, mark, text, at = json.JSONDecoder(), '"annotations"', "", 0
    try:
        with open(path, encoding="utf-8") as file:
            while mark not in text:
                piece = file.read(PIECE)
                if not piece:
                    raise ValueError("it holds no list of annotations")
                text = text[-len(mark) :] + piece
            at = text.index(mark) + len(mark)
            while True:
                at = _skip(text, at)
                if text.startswith("]", at):
                    return
                try:
                    entry, end = decoder.raw_decode(text, at)
                except ValueError:
                    piece = file.read(PIECE)
                    if not piece or len(text) - at > LONGEST:
                        raise ValueError("it ends within its annotations") from None
                    text, at = text[at:] + piece, 0
                    continue
                if not isinstance(entry, dict):
                    raise ValueError("an annotation is no object")
                yield entry
                at = end
    except ValueError as error:
        raise DamageError(f"{path} is damaged: {error}. Fetch it again.") from None


def _skip(text: str, at: int) -> int:
    """The next character that is neither white nor punctuation between annotations."""
    while at < len(text) and text[at] in " \n\r\t,:[":
        at += 1
    return at
