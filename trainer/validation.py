"""Figures on held-out training pictures while a run trains, within a share of its time."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from fmri2img.models.closed_form import PictureRows
from fmri2img.models.decoder import MultiSubjectDecoder, Outputs
from fmri2img.trainer.collectives import broadcast_object, mean_over_ranks
from fmri2img.trainer.config import SpaceConfig
from fmri2img.trainer.engines import Engine
from fmri2img.trainer.objectives import (
    Draws,
    Place,
    ResponseLosses,
    fixed_noise,
    joined_outputs,
    judge,
    judge_whole,
    noised,
    split_rows,
)

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
    engine: Engine,
    rows: Mapping[str, PictureRows],
    spaces: Mapping[str, SpaceConfig],
    place: Place,
    *,
    losses: ResponseLosses | None = None,
    seed: int = 0,
) -> Metrics:
    """Every rank computes the same figures from all validation pictures, so that no rank's decision can differ.

    Terms are means over subjects of the losses that count at `place`, on all of a subject's validation pictures, and of
    those of the decoder as a whole (`losses`); `retrieval` is the share of pictures whose own features are the nearest
    among the subject's, by cosine. Priors are asked about noise that belongs to the pictures by name (`seed`), the same
    at every step. No random number is drawn. What is predicted is kept on the CPU; the device holds `ROWS` rows of all
    subjects while they go forward, and one subject's predictions while they are judged.
    """
    decoder: MultiSubjectDecoder = engine.decoder
    decoder.eval()
    subjects = [name for name in decoder.subjects if name in rows]
    responses = {name: torch.from_numpy(rows[name].responses) for name in subjects}
    features = {
        name: torch.cat([torch.from_numpy(rows[subject].features[name]) for subject in subjects])
        for name in spaces
    }
    draws = _fixed_draws(decoder, {subject: rows[subject].nsd_ids for subject in subjects}, seed)
    outputs = _predict(engine, responses, features, draws)
    sums: dict[str, list[float]] = {}
    whole = 0.0
    for name, value, weight in judge_whole(outputs, responses, losses or ResponseLosses(), place):
        sums[f"validation/{name}"] = [value]
        whole += weight * value
    start = 0
    for subject in subjects:
        part = slice(start, start + len(rows[subject].nsd_ids))
        start = part.stop
        picture = torch.from_numpy(rows[subject].nsd_ids).to(engine.device)
        mine = _rows(outputs, part, engine.device)
        total = whole
        for name, space in spaces.items():
            true, drawn = features[name][part].to(engine.device), draws.get(name)
            drawn = drawn and _take(drawn, part).to(engine.device)
            for kind, value, weight in judge(
                decoder, name, mine, true, picture, space.losses, place, draws=drawn
            ):
                sums.setdefault(f"validation/{name}/{kind}", []).append(value)
                total += weight * value
            if name in mine.directions:
                share = _top1(mine.directions[name], decoder.branch(name).standardise(true))
                sums.setdefault(f"validation/{name}/retrieval", []).append(share)
        sums.setdefault("validation/loss", []).append(total)
    values = mean_over_ranks([float(np.mean(value)) for value in sums.values()])
    return dict(zip(sums, values, strict=True))


def _predict(
    engine: Engine,
    responses: Mapping[str, Tensor],
    features: Mapping[str, Tensor],
    draws: Mapping[str, Draws],
) -> Outputs:
    """Outputs on the CPU for all rows, which go forward in parts that hold every subject's next rows."""
    counts = [len(rows) for rows in responses.values()]
    parts = max(1, math.ceil(sum(counts) / ROWS))
    split = {name: rows.tensor_split(parts) for name, rows in responses.items()}
    places = split_rows(counts, parts)
    found = []
    for part, rows in enumerate(places):
        true = {name: features[name][rows].to(engine.device) for name in draws}
        drawn = {name: _take(values, rows).to(engine.device) for name, values in draws.items()}
        asked = noised(engine.decoder, true, drawn)
        latent, *others = engine.forward(
            {name: each[part].to(engine.device) for name, each in split.items()}, asked
        )
        found.append(
            Outputs(latent.cpu(), *({name: value.cpu() for name, value in some.items()} for some in others))
        )
    return joined_outputs(found, places)


def _take(drawn: Draws, rows: slice | Tensor) -> Draws:
    return Draws(drawn.noise[rows], drawn.timestep[rows], drawn.dropped[rows])


def _fixed_draws(
    decoder: MultiSubjectDecoder, nsd_ids: Mapping[str, np.ndarray], seed: int
) -> dict[str, Draws]:
    """What the prior of each space is asked about every subject's pictures, one subject after another."""
    found = {}
    for name in decoder.priors:
        config, size = decoder.prior(name).config, decoder.branch(name).mean.numel()
        each = [fixed_noise(name, config, size, subject, ids, seed=seed) for subject, ids in nsd_ids.items()]
        parts = zip(*((drawn.noise, drawn.timestep, drawn.dropped) for drawn in each), strict=True)
        found[name] = Draws(*(torch.cat(part) for part in parts))
    return found


def _rows(outputs: Outputs, part: slice, device: torch.device) -> Outputs:
    """One subject's rows of what has a row for every row of the batch, on a device."""

    def of(some: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: value[part].to(device) for name, value in some.items()}

    latent, features, directions, denoised, *_ = outputs
    return Outputs(latent[part].to(device), of(features), of(directions), of(denoised), {}, {})


def _top1(predicted: Tensor, target: Tensor) -> float:
    normal = torch.nn.functional.normalize
    nearest = (normal(predicted, dim=1) @ normal(target, dim=1).T).argmax(1)
    return float((nearest == torch.arange(len(target), device=target.device)).float().mean())
