"""Pictures and captions of the 73,000 NSD stimuli in the files that prepared sets come with."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fmri2img.datasets.array_files import ArrayFile, open_array
from fmri2img.errors import DamageError, InputError

CAPTIONS = "COCO_73k_annots_curated.npy"


class CuratedCaptions:
    """Captions `(pictures, k)` by nsd_id, strings, empty where a picture has fewer than `k`; read by rows.

    Raises:
        InputError: the file is missing or holds something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._array = open_array(path.parent, path.name)
        if len(self._array.shape) != 2 or self._array.dtype.kind not in "US":
            raise InputError(
                f"{path} is {self._array.dtype} {self._array.shape}: give captions (pictures, k) as strings."
            )

    @classmethod
    def find(cls, given: Path | None, *folders: Path) -> CuratedCaptions | None:
        """Those of the file given, else those in the first of the folders that has the usual file."""
        if given is not None:
            return cls(given)
        return next((cls(folder / CAPTIONS) for folder in folders if (folder / CAPTIONS).is_file()), None)

    def __len__(self) -> int:
        return self._array.shape[0]

    def row(self, row: int) -> list[str]:
        """The captions in a row."""
        if not 0 <= row < len(self):
            raise InputError(
                f"{self.path} has captions of {len(self)} pictures and none of {row}: bring the whole file."
            )
        texts = self._array.rows(np.array([row]))[0].tolist()
        words = [text.decode() if isinstance(text, bytes) else str(text) for text in texts]
        return [text.strip() for text in words if text.strip()]


class PlanarPictures:
    """Pictures `(n, 3, height, width)` with values in [0, 1], by nsd_id: `coco_images_224_float16.hdf5`.

    Raises:
        InputError: the file is missing or holds something else.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path = path
        self._array: ArrayFile = open_array(path.parent, f"{path.name}:{key}")
        if len(self._array.shape) != 4 or self._array.shape[1] != 3 or self._array.dtype.kind != "f":
            raise InputError(
                f"{path}:{key} is {self._array.dtype} {self._array.shape}: give pictures (n, 3, height, width) "
                "as floats in [0, 1]."
            )

    def __len__(self) -> int:
        return self._array.shape[0]

    def picture(self, nsd_id: int) -> np.ndarray:
        """uint8 `(height, width, 3)`.

        Raises:
            DamageError: values beyond [0, 1].
        """
        values = self._array.rows(np.array([nsd_id]))[0].astype(np.float32)
        if not ((values >= 0) & (values <= 1)).all():
            raise DamageError(f"{self.path}: picture {nsd_id} has values beyond 0 and 1. Fetch it again.")
        return np.ascontiguousarray(np.round(values * 255).astype(np.uint8).transpose(1, 2, 0))
