"""The weighted sum of all losses of a recipe on one batch, and the value of every term.

Averaging. The engines average gradients over ranks. A mean over this rank's rows is then the mean over the global
batch, since ranks hold equally many rows. A loss over pairs is computed whole on every rank from gathered rows, and
each rank's backward covers its own rows only, so it is multiplied by the number of ranks before the average.

While responses are mixed, so is what they are compared with: targets of regressions, hard labels and soft labels.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from fmri2img.models.decoder import MultiSubjectDecoder
from fmri2img.models.spaces import DIRECTED_LOSSES
from fmri2img.trainer.collectives import gather_rows, rank, world_size
from fmri2img.trainer.objectives.contrastive import (
    bimixco_loss,
    contrastive_loss,
    soft_contrastive_loss,
    softclip_loss,
)
from fmri2img.trainer.objectives.mixing import Mixing
from fmri2img.trainer.objectives.regression import cosine_loss, l1_loss, regression_loss
from fmri2img.trainer.objectives.settings import Contrast, Loss, Losses, Place

Outputs = tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]

# Kinds of losses over pairs of the global batch.
POOLED = {*DIRECTED_LOSSES, "soft_contrastive"}
REGRESSIONS = {"mse": regression_loss, "cosine": cosine_loss, "l1": l1_loss}


@dataclass(frozen=True)
class LossTerms:
    """What to run backward on, the value of every active term on this rank (`space/kind`), and their weights."""

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
        features_BF: Tensor,
        direction_BF: Tensor | None,
        target_BF: Tensor,
        shape: tuple[int, ...],
        pool: _Pool,
    ) -> None:
        self.features, self.direction, self.target = features_BF, direction_BF, target_BF
        self.shape, self.pool = shape, pool

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


def decoder_loss(
    decoder: MultiSubjectDecoder,
    outputs: Outputs,
    features: Mapping[str, Tensor],
    picture_B: Tensor,
    spaces: Mapping[str, Losses],
    *,
    place: Place,
    mixing: Mixing | None = None,
) -> LossTerms:
    """All losses of a recipe that count at a place in the run, on one batch.

    `outputs` are the decoder's for this rank's rows, `features[space]` (B, *shape) and `picture_B` what is true of
    them; `mixing` is what the responses went through. Collective where a loss over pairs is active: every rank must
    call it with the same spaces and place.
    """
    terms: dict[str, Tensor] = {}
    weights: dict[str, float] = {}
    backward: Tensor | None = None
    idle: list[Tensor] = []
    pool = _Pool(picture_B, mixing, gather_rows)
    for name, losses in spaces.items():
        rows = _rows(decoder, name, outputs, features[name], pool)
        active = [(kind, loss) for kind, loss in losses if loss.active(place)]
        for kind, loss in active:
            key = f"{name}/{kind}"
            terms[key], weights[key] = rows.value(kind, loss, place), loss.weight_at(place)
            term = terms[key] * weights[key] * (world_size() if kind in POOLED else 1)
            backward = term if backward is None else backward + term
        if all(kind in DIRECTED_LOSSES for kind, _ in active):
            idle.append(rows.features)
        if rows.direction is not None and not any(kind in DIRECTED_LOSSES for kind, _ in active):
            idle.append(rows.direction)
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
) -> Iterator[tuple[str, float, float]]:
    """Kind, value and weight of each loss of one space that counts at a place, on these rows alone, unmixed."""
    rows = _rows(decoder, name, outputs, features, _Pool(picture_B, None, lambda rows: rows))
    for kind, loss in losses:
        if loss.active(place):
            yield kind, float(rows.value(kind, loss, place)), loss.weight_at(place)


def _rows(decoder: MultiSubjectDecoder, name: str, outputs: Outputs, features: Tensor, pool: _Pool) -> _Rows:
    _, predicted, directions = outputs
    branch = decoder.branch(name)
    return _Rows(
        predicted[name], directions.get(name), branch.standardise(features), tuple(branch.shape), pool
    )
