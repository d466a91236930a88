"""Trials that several people saw at the same place of the same experiment, as targets for a new subject's head.

Where subjects go through one order of pictures, what they share at a trial is more than the picture: attention, the
pictures before, the time since the run began. A head fitted to the latents of others *at the same trial* carries over
what no average over a picture's repeats holds (functional alignment; Haxby et al. 2011, Neuron; Yamada et al. 2015,
NeuroImage). Pretraining keeps the latents when the recipe says `trial_latents`; the responses stay where they are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fmri2img.datasets import Dataset, Samples
from fmri2img.datasets.plan import trials_of
from fmri2img.models.closed_form import PictureRows
from fmri2img.models.decoder import MultiSubjectDecoder
from fmri2img.trainer.batches import picture_rows


@dataclass(frozen=True)
class Trials:
    """Single trials of one subject: responses with features, and `places` (n, 3) int64: picture, session, number."""

    rows: PictureRows
    places: np.ndarray


def read_trials(
    dataset: Dataset, samples: Samples, spaces: Sequence[str], sessions: Sequence[int] | None
) -> Trials:
    """Every training trial in the chosen sessions, with its place in the experiment."""
    rows, repeats = trials_of(samples, sessions)
    records = {int(row): dataset.trials(samples, int(row)) for row in np.unique(rows)}
    places = [
        (int(samples.nsd_id[row]), records[int(row)][repeat]["session"], records[int(row)][repeat]["trial"])
        for row, repeat in zip(rows, repeats, strict=True)
    ]
    single = picture_rows(dataset, samples, spaces, sessions=sessions, single=True)
    return Trials(single, np.array(places, np.int64))


@torch.no_grad()
def trial_latents(decoder: MultiSubjectDecoder, trials: Mapping[str, Trials]) -> dict[str, Tensor]:
    """What a checkpoint keeps: `SUBJECT.latent` (n, L) float32 and `SUBJECT.place` (n, 3) int64."""
    kept: dict[str, Tensor] = {}
    for subject, those in trials.items():
        kept[f"{subject}.latent"] = decoder.heads[subject](torch.from_numpy(those.rows.responses))
        kept[f"{subject}.place"] = torch.from_numpy(those.places)
    return kept


def paired_targets(kept: Mapping[str, Tensor], places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean latent of all kept trials of the same picture at the same session and number, and how many there were.

    Args:
        kept: what `trial_latents` gave.
        places: (n, 3) of the new subject's trials.

    Returns:
        (n, L) float32, zero where nobody has such a trial, and (n,) int64.
    """
    row_of = {tuple(place): row for row, place in enumerate(places.tolist())}
    width = next(value.shape[1] for name, value in kept.items() if name.endswith(".latent"))
    total, count = np.zeros((len(places), width)), np.zeros(len(places), np.int64)
    for name, latents in kept.items():
        if not name.endswith(".latent"):
            continue
        for latent, place in zip(latents.numpy(), kept[f"{name[:-7]}.place"].tolist(), strict=True):
            row = row_of.get(tuple(place))
            if row is not None:
                total[row] += latent
                count[row] += 1
    return (total / np.maximum(count, 1)[:, None]).astype(np.float32), count
