"""One step of every loss in one process or in several, in float64: what comes of it must not depend on how many.

Run as `python ranks.py FOLDER RANK WORLD`: writes the terms and the averaged gradients of each part of a run.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from fmri2img.models.config import DecoderConfig
from fmri2img.models.decoder import MultiSubjectDecoder
from fmri2img.models.prior import PriorConfig
from fmri2img.models.spaces import TargetSpace
from fmri2img.trainer.objectives import (
    Losses,
    LossTerms,
    MicroBatches,
    Place,
    ResponseLosses,
    active_mixing,
    decoder_loss,
    draw_mixing,
    draw_noise,
    noised,
)

VOXELS = {"subj01": 7, "subj02": 12, "subj05": 9}
SHAPES = {"map": (2, 3), "tone": (4,), "words": (5,)}
ROWS, LANES, STEPS = 16, 4, 9
LOSSES: dict[str, dict[str, Any]] = {
    "map": {"mse": {}, "l1": {"weight": 0.5}, "soft_contrastive": {"weight": 0.1}, "prior": {"end": 0.5}},
    "tone": {"contrastive": {"weight": 0.7, "end": 0.5}, "softclip": {"temperature": 0.05, "begin": 0.5}},
    "words": {
        "prior": {"weight": 3.0},
        "cosine": {"weight": 0.0},
        "bimixco": {"temperature": 0.2, "end": 0.34},
        "softclip": {"temperature": 0.1, "begin": 0.34, "weight": 2.0, "final_weight": 0.0},
    },
}
# Learned positions and read-out tokens, all that rows go without, all that is predicted.
PRIORS = {
    "map": PriorConfig(depth=1, heads=2, head_width=4, timesteps=9, sampling_steps=3, width=6, predicts="v"),
    "words": PriorConfig(
        depth=1, heads=1, head_width=2, timesteps=5, sampling_steps=3, queries="tokens", condition_dropout=0.5
    ),
}
WHOLE = {"response": {"weight": 0.5, "end": 0.5}, "cycle": {"weight": 2.0}}
# With mixing, between the ends of the two, and without.
PLACES = [Place(step, STEPS) for step in (1, 4, 8)]


def spaces() -> dict[str, Losses]:
    return {name: Losses.model_validate(kinds) for name, kinds in LOSSES.items()}


def decoder(dropout: float = 0.0) -> MultiSubjectDecoder:
    """Every parameter random: a gradient of exactly 0 would prove nothing."""
    targets = {
        name: TargetSpace(
            name, shape, np.full(shape, 0.5, np.float32), 2.0, spaces()[name].directed, PRIORS.get(name)
        )
        for name, shape in SHAPES.items()
    }
    sizes = DecoderConfig(latent=6, hidden=10, blocks=1, dropout=dropout, rebuild=True)
    made = sizes.build(VOXELS, targets).double()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return made


def batch(rank: int = 0, world: int = 1) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """A rank's share of every subject's rows. Pictures repeat, within subjects and between them."""
    each = ROWS // world
    mine = slice(rank * each, (rank + 1) * each)
    generator = torch.Generator().manual_seed(100)
    responses, features, pictures = {}, {name: [] for name in SHAPES}, []  # type: ignore[var-annotated]
    tables = {
        name: torch.randn(20, *shape, generator=generator, dtype=torch.float64)
        for name, shape in SHAPES.items()
    }
    for subject, width in VOXELS.items():
        responses[subject] = torch.randn(ROWS, width, generator=generator, dtype=torch.float64)[mine]
        seen = torch.randint(0, 20, (ROWS,), generator=generator)[mine]
        pictures.append(seen)
        for name, table in tables.items():
            features[name].append(table[seen])
    return responses, {name: torch.cat(parts) for name, parts in features.items()}, torch.cat(pictures)


def step(
    made: MultiSubjectDecoder, place: Place, *, rank: int = 0, world: int = 1, parts: int = 1
) -> LossTerms:
    """Forward and backward of a rank's rows, as the loop does it with an engine."""
    responses, features, pictures = batch(rank, world)
    settings, mixing = active_mixing(spaces().values(), place), None
    each = LANES // world
    rows = {name: len(values) for name, values in responses.items()}
    lanes = range(rank * each, (rank + 1) * each)
    draws = {
        name: draw_noise(name, prior, int(np.prod(SHAPES[name])), rows, lanes, seed=3, step=place.step)
        for name, prior in PRIORS.items()
    }
    if settings is not None:
        mixing = draw_mixing(settings, rows, lanes, seed=3, step=place.step)
        responses = mixing.mix_responses(responses)
    micro = MicroBatches(
        made,
        lambda loss, last: loss.backward(),
        responses,
        parts=parts,
        seed=lambda part: None,
        noised=noised(made, features, draws, mixing),
    )
    loss = decoder_loss(
        made,
        micro.forward(),
        features,
        pictures,
        spaces(),
        place=place,
        mixing=mixing,
        draws=draws,
        whole=ResponseLosses.model_validate(WHOLE),
        responses=responses,
    )
    micro.backward(loss.backward)
    return loss


def told(place: Place, *, rank: int = 0, world: int = 1, parts: int = 1) -> dict[str, Tensor]:
    """Terms and gradients, averaged over ranks."""
    made = decoder()
    loss = step(made, place, rank=rank, world=world, parts=parts)
    found = {f"term.{name}": value.detach().clone() for name, value in loss.terms.items()}
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None, name
        found[f"gradient.{name}"] = parameter.grad.clone()
    if world > 1:
        for value in found.values():
            dist.all_reduce(value)
            value /= world
    return found


def main(folder: Path, rank: int, world: int) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / f'store-{world}'}", rank=rank, world_size=world
    )
    for place in PLACES:
        for parts in (1, 2):
            name = f"{world}-{place.step}-{parts}-{rank}.safetensors"
            save_file(told(place, rank=rank, world=world, parts=parts), folder / name)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
