"""What a recipe says of its losses: which kinds a feature space has, how much each counts, and when in the run.

Everything here is a pure function of the place in the run, so that nothing has to be saved to resume. What each kind
computes stands in `regression.py` and `contrastive.py`; `docs/training-objectives.md` has them in one table.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from fmri2img.models.spaces import DIRECTED_LOSSES


@dataclass(frozen=True)
class Place:
    """A step of a run, counted from 0, and how many there are."""

    step: int
    steps: int

    @classmethod
    def last(cls, steps: int) -> "Place":
        """The last step of a run: what a run is judged by, at whatever step, so that its figures compare."""
        return cls(max(0, steps - 1), max(1, steps))


class Loss(BaseModel):
    """One loss of one space: its weight, and the part of the run in which it counts.

    `begin` and `end` are shares of the run; a loss counts from the first step that is not before `begin` to the last
    before `end`. What has a `final_` beside it moves there along half a cosine over the loss's own part of the run.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    weight: float = Field(default=1.0, ge=0, description="what the loss is multiplied by in the sum")
    final_weight: float | None = Field(default=None, ge=0, description="weight at the end of its part")
    begin: float = Field(
        default=0.0, ge=0, lt=1, description="share of the run before which it does not count"
    )
    end: float = Field(default=1.0, gt=0, le=1, description="share of the run after which it does not count")

    @model_validator(mode="after")
    def _ordered(self) -> "Loss":
        if self.begin >= self.end:
            raise ValueError(f"begin {self.begin} must lie before end {self.end}")
        return self

    def active(self, place: Place) -> bool:
        """Whether the loss counts at a step."""
        first, stop = self._part(place.steps)
        return first <= place.step < stop

    def weight_at(self, place: Place) -> float:
        """The weight at a step."""
        return self._anneal(self.weight, self.final_weight, place)

    @property
    def counts(self) -> bool:
        """False when the weight is 0 throughout."""
        return bool(self.weight or self.final_weight)

    def _part(self, steps: int) -> tuple[int, int]:
        # Both ends round alike, so that of two losses that follow each other exactly one counts at every step.
        return math.ceil(self.begin * steps), math.ceil(self.end * steps)

    def _anneal(self, first: float, final: float | None, place: Place) -> float:
        """Half a cosine, as MindEye's temperature goes, by step where that goes by epoch."""
        if final is None:
            return first
        begin, stop = self._part(place.steps)
        share = min(1.0, max(0.0, (place.step - begin) / max(1, stop - 1 - begin)))
        return final + (first - final) * (1 + math.cos(math.pi * share)) / 2


class Contrast(Loss):
    """A loss over pairs of the global batch; `temperature` divides cosine similarities."""

    temperature: float = Field(default=0.1, gt=0, description="divides the cosine similarities")
    final_temperature: float | None = Field(
        default=None, gt=0, description="temperature at the end of its part"
    )

    def temperature_at(self, place: Place) -> float:
        """The temperature at a step."""
        return self._anneal(self.temperature, self.final_temperature, place)


class BiMixCo(Contrast):
    """Contrast while responses are mixed in pairs; defaults are those of MindEye."""

    temperature: float = Field(default=0.006, gt=0, description="divides the cosine similarities")
    beta: float = Field(default=0.15, gt=0, description="both parameters of the Beta distribution of shares")
    mixed: float = Field(default=0.5, gt=0, le=1, description="share of the rows that are mixed")


class SoftClip(Contrast):
    """Contrast with soft labels; the defaults are those of MindEye, from 0.004 to 0.0075."""

    temperature: float = Field(default=0.004, gt=0, description="divides the cosine similarities")
    final_temperature: float | None = Field(
        default=0.0075, gt=0, description="temperature at the end of its part"
    )


class SoftContrast(Contrast):
    """Contrast with soft labels between the positions of maps; the default is MindEye2's."""

    temperature: float = Field(default=0.2, gt=0, description="divides the cosine similarities")


class Losses(BaseModel):
    """The losses of one feature space by kind; what is not named is not there.

    The first three compare predicted features with those of the picture; the next three compare a direction, which the
    space's branch then has a projector for, with the directions of all pictures of the global batch. `prior` is that of
    the space's diffusion prior.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    mse: Loss | None = None
    cosine: Loss | None = None
    l1: Loss | None = None
    contrastive: Contrast | None = None
    bimixco: BiMixCo | None = None
    softclip: SoftClip | None = None
    soft_contrastive: SoftContrast | None = None
    prior: Loss | None = None

    def __iter__(self) -> Iterator[tuple[str, Loss]]:  # type: ignore[override]
        """Kind and settings of every loss there is, in the order above."""
        for kind in type(self).model_fields:
            loss = getattr(self, kind)
            if loss is not None:
                yield kind, loss

    @property
    def directed(self) -> bool:
        """Whether a loss compares directions, whatever its weight."""
        return any(getattr(self, kind) is not None for kind in DIRECTED_LOSSES)

    @model_serializer(mode="wrap")
    def _only_those_there(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {kind: loss for kind, loss in handler(self).items() if loss is not None}


class ResponseLosses(BaseModel):
    """The losses of the decoder as a whole, on what its maps back to voxels give (`decoder.rebuild`).

    `response` compares each subject's responses with those rebuilt from their latent; `cycle` latents with what is left
    of them after a way through the next subject's voxels.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    response: Loss | None = None
    cycle: Loss | None = None

    def __iter__(self) -> Iterator[tuple[str, Loss]]:  # type: ignore[override]
        """Name and settings of every loss there is."""
        for name in type(self).model_fields:
            loss = getattr(self, name)
            if loss is not None:
                yield name, loss

    @model_serializer(mode="wrap")
    def _only_those_there(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: loss for name, loss in handler(self).items() if loss is not None}


def active_mixing(spaces: Iterable[Losses], place: Place) -> BiMixCo | None:
    """The mixing that responses go through at a step, if any. Responses are mixed once, for all spaces."""
    for losses in spaces:
        if losses.bimixco is not None and losses.bimixco.active(place):
            return losses.bimixco
    return None


def check_losses(spaces: dict[str, Losses]) -> None:
    """Raise ValueError in one sentence for losses that cannot train or would contradict each other."""
    every = [loss for losses in spaces.values() for _, loss in losses]
    if not any(loss.counts for loss in every):
        raise ValueError(
            "every loss has weight 0: give a space a loss that counts, such as losses: {mse: {weight: 1}}"
        )
    reached = 0.0
    for loss in sorted((loss for loss in every if loss.counts), key=lambda loss: loss.begin):
        if loss.begin > reached:
            break
        reached = max(reached, loss.end)
    if reached < 1:
        raise ValueError(
            f"no loss counts after {reached:g} of the run: let another one begin there, or the last one end at 1"
        )
    mixings = {(losses.bimixco.beta, losses.bimixco.mixed) for losses in spaces.values() if losses.bimixco}
    if len(mixings) > 1:
        raise ValueError(
            f"bimixco is told beta and mixed as {sorted(mixings)}: responses are mixed once for all spaces, "
            "so give every bimixco the same"
        )
