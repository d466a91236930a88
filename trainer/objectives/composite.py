"""The weighted sum of all losses of a recipe on one batch, and the value of every term.

Averaging. The engines average gradients over ranks. A mean over this rank's rows is then the mean over the global
batch, since ranks hold equally many rows. A loss over pairs is computed whole on every rank from gathered rows, and
each rank's backward covers its own rows only, so it is multiplied by the number of ranks before the average.

While responses are mixed, so is what they are compared with: targets of regressions, hard labels and soft labels.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fmri2img.models.decoder import MultiSubjectDecoder, Outputs
from fmri2img.models.diffusion import cosine_signal
from fmri2img.models.spaces import DIRECTED_LOSSES
from fmri2img.trainer.collectives import gather_rows, rank, world_size
from fmri2img.trainer.objectives.contrastive import (
    bimixco_loss,
    contrastive_loss,
    soft_contrastive_loss,
    softclip_loss,
)
from fmri2img.trainer.objectives.mixing import Mixing
from fmri2img.trainer.objectives.prior import Draws, prior_loss
from fmri2img.trainer.objectives.regression import (
    cosine_loss,
    cycle_loss,
    l1_loss,
    regression_loss,
    response_loss,
)
from fmri2img.trainer.objectives.settings import Contrast, Loss, Losses, Place, ResponseLosses

# Kinds of losses over pairs of the global batch.
POOLED = {*DIRECTED_LOSSES, "soft_contrastive"}
REGRESSIONS = {"mse": regression_loss, "cosine": cosine_loss, "l1": l1_loss}


@dataclass(frozen=True)
class LossTerms:
    """What to run backward on, the value of every active term on this rank, and their weights.

    Terms are called `space/kind`, those of the decoder as a whole `response` and `cycle`.
    """

    backward: Tensor
    terms: dict[str, Tensor]
    weights: dict[str, float]

    def total(self, values: Mapping[str, float]) -> float:
        """The weighted sum of term values, as reported."""
        return sum(self.weights[name] * value for name, value in values.items())


class _Pool:
    """What the pairs of all spaces have in common: pictures and partners as positions in the global batch."""

    def __init__(self, picture_B: Tensor, mixing: Mixing | None, gather: Callable[[Tensor], Tensor]) -> None:
        self.own, self.mixing, self.gather = picture_B, mixing, gather

    @cached_property
    def picture(self) -> Tensor:
        return self.gather(self.own)

    @cached_property
    def mixed(self) -> Mixing | None:
        if self.mixing is None:
            return None
        # Ranks stand one after another in what is gathered.
        partner = self.mixing.partner + rank() * len(self.own)
        return Mixing(self.gather(partner), self.gather(self.mixing.share))


class _Rows:
    """One space's rows: of this rank, and of the global batch once a loss asks for them."""

    def __init__(
        self,
        decoder: MultiSubjectDecoder,
        name: str,
        outputs: Outputs,
        features: Tensor,
        pool: _Pool,
        draws: Draws | None,
    ) -> None:
        branch = decoder.branch(name)
        self.features, self.direction = outputs.features[name], outputs.directions.get(name)
        self.denoised, self.draws = outputs.denoised.get(name), draws
        self.prior = decoder.prior(name).config if name in decoder.priors else None
        self.target, self.shape, self.pool = branch.standardise(features), branch.shape, pool

    @cached_property
    def wanted(self) -> Tensor:
        return self.target if self.pool.mixing is None else self.pool.mixing.mix(self.target)

    @cached_property
    def all_features(self) -> Tensor:
        return self.pool.gather(self.features)

    @cached_property
    def all_directions(self) -> Tensor:
        assert self.direction is not None
        return self.pool.gather(self.direction)

    @cached_property
    def all_targets(self) -> Tensor:
        return self.pool.gather(self.target)

    @cached_property
    def all_teachers(self) -> Tensor | None:
        return None if self.pool.mixed is None else self.pool.mixed.mix(self.all_targets)

    def value(self, kind: str, loss: Loss, place: Place) -> Tensor:
        """One loss on these rows."""
        if kind in REGRESSIONS:
            return REGRESSIONS[kind](self.features, self.wanted)
        if kind == "prior":
            return self._prior()
        assert isinstance(loss, Contrast)
        temperature, mixed = loss.temperature_at(place), self.pool.mixed
        if kind == "softclip":
            return softclip_loss(
                self.all_directions, self.all_targets, temperature=temperature, teacher_BF=self.all_teachers
            )
        if kind == "soft_contrastive":
            teachers = self.all_teachers
            return soft_contrastive_loss(
                self.all_features.unflatten(1, self.shape),
                self.all_targets.unflatten(1, self.shape),
                temperature=temperature,
                teacher=None if teachers is None else teachers.unflatten(1, self.shape),
            )
        rows = self.all_directions, self.all_targets, self.pool.picture
        if mixed is None:
            return contrastive_loss(*rows, temperature=temperature)
        return bimixco_loss(*rows, mixed.partner, mixed.share, temperature=temperature)

    def _prior(self) -> Tensor:
        assert self.denoised is not None and self.draws is not None and self.prior is not None
        signal, noise = cosine_signal(self.prior.timesteps), self.draws.noise.to(self.wanted.dtype)
        return prior_loss(
            self.denoised,
            self.wanted,
            noise,
            self.draws.timestep,
            signal,
            predicts=self.prior.predicts,
        )


def decoder_loss(
    decoder: MultiSubjectDecoder,
    outputs: Outputs,
    features: Mapping[str, Tensor],
    picture_B: Tensor,
    spaces: Mapping[str, Losses],
    *,
    place: Place,
    mixing: Mixing | None = None,
    draws: Mapping[str, Draws] | None = None,
    whole: ResponseLosses | None = None,
    responses: Mapping[str, Tensor] | None = None,
) -> LossTerms:
    """All losses of a recipe that count at a place in the run, on one batch.

    `outputs` are the decoder's for this rank's rows, `features[space]` (B, *shape) and `picture_B` what is true of
    them; `mixing` is what the responses went through; `draws` is what priors were asked about; `responses` are those
    that went in, which the losses of `whole` are about. Collective where a loss over pairs is active: every rank must
    call it with the same spaces and place.
    """
    terms: dict[str, Tensor] = {}
    weights: dict[str, float] = {}
    backward: Tensor | None = None
    idle: list[Tensor] = []
    pool = _Pool(picture_B, mixing, gather_rows)
    for name, losses in spaces.items():
        rows = _Rows(decoder, name, outputs, features[name], pool, (draws or {}).get(name))
        active = [(kind, loss) for kind, loss in losses if loss.active(place)]
        for kind, loss in active:
            key = f"{name}/{kind}"
            terms[key], weights[key] = rows.value(kind, loss, place), loss.weight_at(place)
            term = terms[key] * weights[key] * (world_size() if kind in POOLED else 1)
            backward = term if backward is None else backward + term
        if all(kind in (*DIRECTED_LOSSES, "prior") for kind, _ in active):
            idle.append(rows.features)
        if rows.denoised is not None and not any(kind == "prior" for kind, _ in active):
            idle.append(rows.denoised)
        if rows.direction is not None and not any(kind in DIRECTED_LOSSES for kind, _ in active):
            idle.append(rows.direction)
    for name, loss in whole or ():
        if loss.active(place):
            terms[name], weights[name] = _whole(name, outputs, responses or {}), loss.weight_at(place)
            term = terms[name] * weights[name]
            backward = term if backward is None else backward + term
    if "response" not in terms:
        idle += outputs.rebuilt.values()
    if "cycle" not in terms:
        idle += outputs.returned.values()
    assert backward is not None, "a recipe without a loss at some step is refused when it is read"
    # A layer without a loss would have no gradient, and ZeRO must see every parameter at every step.
    for output in idle:
        backward = backward + 0.0 * output.sum()
    return LossTerms(backward, terms, weights)


def judge(
    decoder: MultiSubjectDecoder,
    name: str,
    outputs: Outputs,
    features: Tensor,
    picture_B: Tensor,
    losses: Losses,
    place: Place,
    draws: Draws | None = None,
) -> Iterator[tuple[str, float, float]]:
    """Kind, value and weight of each loss of one space that counts at a place, on these rows alone, unmixed."""
    rows = _Rows(decoder, name, outputs, features, _Pool(picture_B, None, lambda rows: rows), draws)
    for kind, loss in losses:
        if loss.active(place):
            yield kind, float(rows.value(kind, loss, place)), loss.weight_at(place)


def judge_whole(
    outputs: Outputs, responses: Mapping[str, Tensor], losses: ResponseLosses, place: Place
) -> Iterator[tuple[str, float, float]]:
    """Name, value and weight of each loss of the decoder as a whole that counts at a place."""
    for name, loss in losses:
        if loss.active(place):
            yield name, float(_whole(name, outputs, responses)), loss.weight_at(place)


def _whole(name: str, outputs: Outputs, responses: Mapping[str, Tensor]) -> Tensor:
    if name == "response":
        return response_loss(outputs.rebuilt, {subject: responses[subject] for subject in outputs.rebuilt})
    return cycle_loss(outputs.latent, torch.cat(list(outputs.returned.values())))
