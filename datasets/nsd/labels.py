"""Labels of voxels and vertices: their names, and which of them a user's words choose."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fmri2img.errors import InputError


def label_names(table: Path | None, name: str, labels: np.ndarray) -> dict[int, str]:
    """The name of each label from 1 that occurs: from the release's `.ctab` table, or else `NAME-3`.

    A file that holds one label only, such as nsdgeneral, gives it its own name.
    """
    found: dict[int, str] = {}
    if table is not None:
        for line in table.read_text("utf-8", errors="replace").splitlines():
            words = line.split()
            if len(words) >= 2 and words[0].isdigit():
                found[int(words[0])] = words[1]
    present = [int(label) for label in np.unique(labels) if label > 0]
    alone = name if present == [1] else ""
    return {label: found.get(label, alone or f"{name}-{label}") for label in present}


def chosen_labels(spec: str, labels: np.ndarray, texts: dict[int, str]) -> np.ndarray:
    """bool of the shape of `labels`: those of `NAME`, or of the one label of `NAME:LABEL`.

    Raises:
        InputError: there is no such label.
    """
    name, colon, label = spec.partition(":")
    if not colon:
        return np.asarray(labels > 0)
    numbers = [number for number, text in texts.items() if text == label]
    if not numbers:
        raise InputError(
            f"{label!r} is no label of {name}: use one of {', '.join(texts.values()) or 'none'}."
        )
    return np.isin(labels, numbers)
