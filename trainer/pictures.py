"""Pictures seen beside pictures reconstructed from held-out training responses, while a run trains."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fmri2img.datasets import Dataset
from fmri2img.datasets.png import encode_png
from fmri2img.errors import StoppedError
from fmri2img.files import write_atomic
from fmri2img.generators import Generator, LoadedGenerator
from fmri2img.models.closed_form import PictureRows
from fmri2img.trainer.collectives import fail_together, rank
from fmri2img.trainer.engines import Engine
from fmri2img.trainer.seeds import derive_seed

FOLDER = "pictures"
COUNT = 8  # of all subjects together, but one of each at least
GAP = 4  # white pixels between a pair and the next


@dataclass(frozen=True)
class Shown:
    """Some of one subject's validation pictures: responses (n, inputs), n `nsd_ids`, and the n pictures that were
    `seen`, (height, width, 3) uint8 each."""

    responses: Tensor
    nsd_ids: list[int]
    seen: list[np.ndarray]


def some_pictures(dataset: Dataset, validation: Mapping[str, PictureRows]) -> dict[str, Shown]:
    """The first few validation pictures of every subject. Every rank reads them, so that all fail where one does."""
    each = max(1, COUNT // len(validation))
    some = {}
    for subject, rows in validation.items():
        chosen = [int(nsd_id) for nsd_id in rows.nsd_ids[:each]]
        table = dataset.samples(subject, "train")
        places = {int(nsd_id): place for place, nsd_id in enumerate(table.nsd_id)}
        seen = [dataset.picture(table, places[nsd_id]) for nsd_id in chosen]
        some[subject] = Shown(torch.from_numpy(rows.responses[:each]), chosen, seen)
    return some


class Pictures:
    """Draws the same pictures again at every call, with the same noise, so that only the decoder makes a difference."""

    def __init__(
        self,
        run: Path,
        generator: Generator,
        rows: Mapping[str, Shown],
        *,
        seed: int,
        device: torch.device,
    ) -> None:
        """Loads the generator's models to `device` on rank 0; what fails there is raised on all ranks. Collective."""
        self.run, self.rows, self.seed = run, rows, seed
        self.generator: LoadedGenerator | None = None
        error: Exception | None = None
        if rank() == 0:
            try:
                self.generator = generator.load(device)
            except Exception as caught:  # told to all ranks by the next line
                error = caught
        fail_together(error)

    def draw(self, engine: Engine, step: int) -> str:
        """Write `pictures/step-........png` and return its path in the run folder. Collective.

        One line a subject, of pairs: seen, reconstructed. Random states stay as they are; what fails on rank 0, which
        alone reconstructs, is raised on all ranks.
        """
        name = f"{FOLDER}/step-{step:08d}.png"
        features = self._predict(engine, self._generators("prior"))
        error: Exception | None = None
        if rank() == 0:
            try:
                self._write(name, encode_png(self._grid(features, engine.device)))
            except Exception as caught:  # told to all ranks by the next line
                error = caught
        fail_together(error)
        return name

    def _write(self, name: str, data: bytes) -> None:
        try:
            (self.run / FOLDER).mkdir(parents=True, exist_ok=True)
            write_atomic(self.run / name, data)
        except OSError as error:
            raise StoppedError(
                f"{self.run / name} cannot be written: {error.strerror}. Mend that and run the same command: it goes "
                "on from the last checkpoint"
            ) from error

    @torch.no_grad()
    def _predict(self, engine: Engine, generators: list[torch.Generator]) -> dict[str, Tensor]:
        """Features (rows of all subjects, *shape) in the units of each space, drawn by priors. Collective at ZeRO 3."""
        engine.decoder.eval()
        predicted = engine.forward(
            {subject: rows.responses.to(engine.device) for subject, rows in self.rows.items()}
        ).features
        restored = {name: engine.decoder.branch(name).restore(value) for name, value in predicted.items()}
        return engine.decoder.for_pictures(restored, generators)

    def _generators(self, what: str) -> list[torch.Generator]:
        """One for each picture, in the order of the decoder's rows."""
        ids = [(subject, nsd_id) for subject in sorted(self.rows) for nsd_id in self.rows[subject].nsd_ids]
        return [
            torch.Generator().manual_seed(derive_seed(self.seed, what, subject, nsd_id))
            for subject, nsd_id in ids
        ]

    def _grid(self, features: Mapping[str, Tensor], device: torch.device) -> np.ndarray:
        subjects, generators = sorted(self.rows), self._generators("pictures")
        assert self.generator is not None  # rank 0 has loaded it
        gpus = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=gpus), torch.no_grad():
            made = self.generator.generate(features, generators)
        drawn = (made.float().cpu() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        height, width = drawn.shape[1:3]
        lines, place = [], 0
        for subject in subjects:
            seen = self.rows[subject].seen
            pairs = [
                np.concatenate([_resized(picture, height, width), drawn[place + n]], axis=1)
                for n, picture in enumerate(seen)
            ]
            place += len(seen)
            lines.append(_beside(pairs, axis=1))
        widest = max(line.shape[1] for line in lines)
        return _beside([_widened(line, widest) for line in lines], axis=0)


def _resized(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    from PIL import Image

    if picture.shape[:2] == (height, width):
        return picture
    larger = picture.shape[0] <= height and picture.shape[1] <= width
    how = Image.Resampling.NEAREST if larger else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(picture).resize((width, height), how))


def _beside(parts: list[np.ndarray], *, axis: int) -> np.ndarray:
    """Parts one after another with white between them."""
    shape = list(parts[0].shape)
    shape[axis] = GAP
    white = np.full(shape, 255, np.uint8)
    spaced = [piece for part in parts for piece in (white, part)][1:]
    return np.concatenate(spaced, axis=axis)


def _widened(line: np.ndarray, width: int) -> np.ndarray:
    return np.pad(line, ((0, 0), (0, width - line.shape[1]), (0, 0)), constant_values=255)
