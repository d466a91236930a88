"""Figures on held-out training pictures while a run trains, within a share of its time."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from fmri2img.models.closed_form import PictureRows
from fmri2img.models.decoder import MultiSubjectDecoder
from fmri2img.trainer.collectives import broadcast_object, mean_over_ranks
from fmri2img.trainer.config import SpaceConfig
from fmri2img.trainer.engines import Engine
from fmri2img.trainer.objectives import Outputs, Place, judge

Metrics = dict[str, float]

# Rows that go forward at once. The same at every world size, since a matrix product of other rows rounds otherwise.
ROWS = 128


class TimeShare:
    """Keeps something within a share of the time since this was made.

    A share of 1 allows everything and reads no clock. Below it, the clock of rank 0 decides for all ranks, since ranks
    that disagreed would wait for each other for ever.
    """

    def __init__(self, share: float, clock: Callable[[], float] = time.perf_counter) -> None:
        self.share, self.clock = share, clock
        self.started = clock()
        self.spent = self.longest = 0.0

    def allows(self) -> bool:
        """Whether one more, as long as the longest so far, would stay within the share. Collective below 1."""
        if self.share >= 1:
            return True
        passed = self.clock() - self.started
        return broadcast_object(self.spent + self.longest <= self.share * (passed + self.longest))

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count what is done within."""
        begun = self.clock()
        yield
        took = self.clock() - begun
        self.spent += took
        self.longest = max(self.longest, took)


@torch.no_grad()
def validate(
    engine: Engine, rows: Mapping[str, PictureRows], spaces: Mapping[str, SpaceConfig], place: Place
) -> Metrics:
    """Every rank computes the same figures from all validation pictures, so that no rank's decision can differ.

    Terms are means over subjects of the losses that count at `place`, on all of a subject's validation pictures;
    `retrieval` is the share of pictures whose own features are the nearest among the subject's, by cosine. No random
    number is drawn. What is predicted is kept on the CPU; the device holds `ROWS` rows of all subjects while they go
    forward, and one subject's predictions while they are judged.
    """
    decoder: MultiSubjectDecoder = engine.decoder
    decoder.eval()
    subjects = [name for name in decoder.subjects if name in rows]
    outputs = _predict(engine, {name: torch.from_numpy(rows[name].responses) for name in subjects})
    sums: dict[str, list[float]] = {}
    start = 0
    for subject in subjects:
        row = rows[subject]
        part = slice(start, start + len(row.nsd_ids))
        start = part.stop
        picture = torch.from_numpy(row.nsd_ids).to(engine.device)
        latent = outputs[0][part].to(engine.device)
        mine, directions = (
            {name: value[part].to(engine.device) for name, value in some.items()} for some in outputs[1:]
        )
        total = 0.0
        for name, space in spaces.items():
            features = torch.from_numpy(row.features[name]).to(engine.device)
            for kind, value, weight in judge(
                decoder, name, (latent, mine, directions), features, picture, space.losses, place
            ):
                sums.setdefault(f"validation/{name}/{kind}", []).append(value)
                total += weight * value
            if name in directions:
                share = _top1(directions[name], decoder.branch(name).standardise(features))
                sums.setdefault(f"validation/{name}/retrieval", []).append(share)
        sums.setdefault("validation/loss", []).append(total)
    values = mean_over_ranks([float(np.mean(value)) for value in sums.values()])
    return dict(zip(sums, values, strict=True))


def _predict(engine: Engine, responses: Mapping[str, Tensor]) -> Outputs:
    """Outputs on the CPU for all rows, which go forward in parts that hold every subject's next rows."""
    counts = [len(rows) for rows in responses.values()]
    parts = max(1, math.ceil(sum(counts) / ROWS))
    split = {name: rows.tensor_split(parts) for name, rows in responses.items()}
    by_subject = [places.tensor_split(parts) for places in torch.arange(sum(counts)).split(counts)]
    back = torch.cat([places[part] for part in range(parts) for places in by_subject]).argsort()
    found = []
    for part in range(parts):
        latent, *others = engine.forward({name: rows[part].to(engine.device) for name, rows in split.items()})
        found.append(
            (latent.cpu(), *({name: value.cpu() for name, value in some.items()} for some in others))
        )

    def whole(pieces: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(pieces))[back]

    latents, features, directions = zip(*found, strict=True)
    return (
        whole(latents),
        {name: whole([piece[name] for piece in features]) for name in features[0]},
        {name: whole([piece[name] for piece in directions]) for name in directions[0]},
    )


def _top1(predicted: Tensor, target: Tensor) -> float:
    normal = torch.nn.functional.normalize
    nearest = (normal(predicted, dim=1) @ normal(target, dim=1).T).argmax(1)
    return float((nearest == torch.arange(len(target), device=target.device)).float().mean())
