"""What the audit scores in a decoder's place: shuffled responses, the mean response, training pictures, regions.

Everything here gives `Reconstructions` of the same items, to be scored by the same metrics.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image

from fmri2img.datasets import Dataset, Samples
from fmri2img.evaluation import Reconstructions, Truth
from fmri2img.evaluation.audit import Nearest, exchanged, nearest
from fmri2img.launch.judging import seen_pictures
from fmri2img.launch.reconstructor import Decoding, Reconstructor, Trials

THUMBNAIL = 32
BLOCK_VALUES = 1 << 24
Change = Callable[[np.ndarray], np.ndarray]
Features = dict[str, np.ndarray]


def shuffled(made: Reconstructions, worker: Reconstructor | None, seed: int) -> Reconstructions:
    """Every item decoded from the responses to another picture, drawn with the noise of its own.

    A prediction depends on nothing but its own responses, so predictions are exchanged and need no decoding.
    """
    given = exchanged(made.nsd_ids, seed)
    features = {space: value[given] for space, value in made.features.items()}
    directions = {space: value[given] for space, value in made.directions.items()}
    return _in_place(made, features, directions, None if worker is None else drawn(worker, features))


def from_mean(made: Reconstructions, decoding: Decoding, worker: Reconstructor | None) -> Reconstructions:
    """Every item decoded from the mean of all items' responses, drawn with the noise of its own."""
    total, count = np.zeros(1), 0
    for unit in decoding.units:
        for trial in decoding.read(unit):
            total = total + trial.responses[: len(trial.places)].sum(0, dtype=np.float64)
            count += len(trial.places)
    mean = (total / count).astype(np.float32)
    found = decoded(decoding, {"mean": lambda responses: np.broadcast_to(mean, responses.shape)})
    features, directions = found["mean"]
    return _in_place(made, features, directions, None if worker is None else drawn(worker, features))


def decoded(decoding: Decoding, changes: Mapping[str, Change]) -> dict[str, tuple[Features, Features]]:
    """Features and retrieval directions of all items, once for every change of the responses (rows, inputs)."""
    parts: dict[str, list[tuple[Features, Features]]] = {name: [] for name in changes}
    for unit in decoding.units:
        trials = decoding.read(unit)
        for name, change in changes.items():
            changed = [_changed(trial, change) for trial in trials]
            features, directions = decoding.predict(unit, changed)
            parts[name].append((_numpy(features), _numpy(directions)))
    return {
        name: (_joined([p[0] for p in part]), _joined([p[1] for p in part])) for name, part in parts.items()
    }


def _changed(trial: Trials, change: Change) -> Trials:
    return replace(trial, responses=np.array(change(trial.responses), dtype=np.float32))


def _numpy(tensors: Mapping[str, torch.Tensor]) -> Features:
    return {name: value.numpy() for name, value in tensors.items()}


def _joined(parts: list[Features]) -> Features:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def drawn(worker: Reconstructor, features: Features) -> np.ndarray:
    """Pictures (n, H, W, 3) of features (n, *shape) given to all items in their order."""
    found, at = [], 0
    for unit in worker.units:
        rows = slice(at, at + len(unit.items))
        given = {
            name: torch.from_numpy(np.ascontiguousarray(value[rows])) for name, value in features.items()
        }
        found.append(worker.generate(unit, given))
        at += len(unit.items)
    return np.concatenate(found)


def _in_place(
    made: Reconstructions, features: Features, directions: Features, pictures: np.ndarray | None
) -> Reconstructions:
    return replace(made, features=features, directions=directions, pictures=pictures, perceived={})


@dataclass(frozen=True)
class TrainingPictures:
    """The distinct pictures of a training split, over all subjects of the data set: whoever taught the decoder.

    `place` says in which table and row a picture is.
    """

    dataset: Dataset
    tables: list[Samples]
    place: dict[int, tuple[int, int]]

    @classmethod
    def of(cls, dataset: Dataset, split: str) -> "TrainingPictures":
        tables = [dataset.samples(subject, split) for subject in dataset.subjects]
        place: dict[int, tuple[int, int]] = {}
        for number, table in enumerate(tables):
            for row, nsd_id in enumerate(table.nsd_id.tolist()):
                place.setdefault(nsd_id, (number, row))
        return cls(dataset, tables, place)

    def features(self, space: str, centre: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Ids (b,) and features (b, d) minus `centre`, block by block."""
        size = max(1, BLOCK_VALUES // max(1, centre.size))
        for number, rows in self._rows(size):
            table = self.tables[number]
            found = self.dataset.read_features(table, rows, space) - centre
            yield table.nsd_id[rows], found.reshape(len(rows), -1)

    def thumbnails(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Ids (b,) and small pictures (b, d), block by block."""
        for number, rows in self._rows(256):
            table = self.tables[number]
            yield table.nsd_id[rows], thumbnails(seen_pictures(self.dataset, table, rows, THUMBNAIL))

    def read(self, ids: np.ndarray, space: str) -> np.ndarray:
        """True features of these pictures, (n, *shape)."""
        found = {}
        for nsd_id in np.unique(ids).tolist():
            number, row = self.place[nsd_id]
            found[nsd_id] = self.dataset.read_features(self.tables[number], [row], space)[0]
        return np.stack([found[nsd_id] for nsd_id in ids.tolist()])

    def pictures(self, ids: np.ndarray, size: int) -> np.ndarray:
        """These pictures, (n, size, size, 3) uint8."""
        found = {}
        for nsd_id in np.unique(ids).tolist():
            number, row = self.place[nsd_id]
            found[nsd_id] = seen_pictures(self.dataset, self.tables[number], np.array([row]), size)[0]
        return np.stack([found[nsd_id] for nsd_id in ids.tolist()])

    def _rows(self, size: int) -> Iterator[tuple[int, np.ndarray]]:
        for number in range(len(self.tables)):
            rows = np.array([row for table, row in self.place.values() if table == number], np.int64)
            for start in range(0, len(rows), size):
                yield number, rows[start : start + size]


def thumbnails(pictures: np.ndarray) -> np.ndarray:
    """Pictures (n, H, W, 3) uint8 as (n, 32 * 32 * 3) float32."""
    size = (THUMBNAIL, THUMBNAIL)
    small = [
        np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR)) for picture in pictures
    ]
    return np.stack(small).reshape(len(small), -1).astype(np.float32)


@dataclass(frozen=True)
class Neighbours:
    """By space, or `pixels`: the nearest training pictures of what was seen, of what was predicted, and to look up."""

    seen: dict[str, Nearest]
    predicted: dict[str, Nearest]
    looked_up: dict[str, Nearest]


def neighbours(
    made: Reconstructions, truth: Truth, index: np.ndarray, training: TrainingPictures
) -> Neighbours:
    """Nearest training pictures of every item, by features centred on the training mean and by small pictures."""
    found = Neighbours({}, {}, {})
    n = len(made.keys)
    for space, predicted in sorted(made.features.items()):
        centre = truth.centres.get(space, np.zeros(predicted.shape[1:], np.float32))
        parts = [truth.features[space][index] - centre, predicted - centre]
        parts += [made.directions[space]] if space in made.directions else []
        rows = np.concatenate([part.reshape(n, -1) for part in parts])
        _split(found, space, nearest(rows, training.features(space, centre), centre=False), n)
    if made.pictures is not None and truth.pictures is not None:
        rows = np.concatenate([thumbnails(truth.pictures[index]), thumbnails(made.pictures)])
        _split(found, "pixels", nearest(rows, training.thumbnails(), centre=True), n)
    return found


def _split(into: Neighbours, name: str, found: Nearest, n: int) -> None:
    parts = [
        Nearest(found.ids[at : at + n], found.similarity[at : at + n]) for at in range(0, len(found.ids), n)
    ]
    into.seen[name], into.predicted[name], into.looked_up[name] = parts[0], parts[1], parts[-1]


def looked_up(
    made: Reconstructions, truth: Truth, found: Neighbours, training: TrainingPictures, space: str
) -> Reconstructions:
    """Each item's nearest training picture in its place: by each space for its features, by `space` for pictures."""
    features = {name: training.read(found.looked_up[name].ids, name) for name in made.features}
    directions = {
        name: (features[name] - truth.centres.get(name, np.float32(0))).reshape(len(made.keys), -1)
        for name in made.directions
    }
    pictures = None
    if made.pictures is not None:
        pictures = training.pictures(found.looked_up[space].ids, made.pictures.shape[1])
    return _in_place(made, features, directions, pictures)
