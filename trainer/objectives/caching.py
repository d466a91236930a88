"""A step in micro-batches whose losses are those of the whole batch: gradient caching.

A loss over pairs needs all rows at once, memory holds only some of them with their graph. So all micro-batches go
forward without a graph; the loss and its gradient with respect to the outputs are computed once, for the whole batch;
then each goes forward again, with the same dropout, and backward from the gradient that was kept (Gao et al. 2021,
arXiv 2101.06983). They cache only the embeddings that a contrastive loss reads; here every output goes through the
cache, so that one code path serves any sum of losses.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Protocol

import torch
from torch import Tensor

from fmri2img.models.decoder import Outputs
from fmri2img.models.prior import Noised

Forward = Callable[[Mapping[str, Tensor], Mapping[str, Noised] | None], Outputs]


class Backward(Protocol):
    """Adds the gradients of a loss to those of the step."""

    def __call__(self, loss: Tensor, *, last: bool) -> None: ...


class MicroBatches:
    """One step's rows of a rank, split so that every micro-batch holds every subject, in the same order.

    `seed(part)` sets the random state before part's forward passes, the same for both. `noised` is what priors are
    asked about the rows. With one part it is the plain step: one pass forward, one backward. `parts` must divide the
    rows of each subject.
    """

    def __init__(
        self,
        forward: Forward,
        backward: Backward,
        responses: Mapping[str, Tensor],
        *,
        parts: int,
        seed: Callable[[int], None],
        noised: Mapping[str, Noised] | None = None,
    ) -> None:
        self._forward, self._backward, self._seed, self.parts = forward, backward, seed, parts
        self._responses = [
            {name: rows.chunk(parts)[part] for name, rows in responses.items()} for part in range(parts)
        ]
        self._places = split_rows([len(rows) for rows in responses.values()], parts)
        self._noised = noised
        self._outputs: Outputs | None = None

    def forward(self) -> Outputs:
        """The outputs for all rows, in the order of the whole batch, to compute a loss from."""
        if self.parts == 1:
            return self._pass(0)
        with torch.no_grad():
            found = [self._pass(part) for part in range(self.parts)]
        self._outputs = joined_outputs(found, self._places)
        for output in chain(*_flat(self._outputs)):
            output.requires_grad_()
        return self._outputs

    def backward(self, loss: Tensor) -> None:
        """Give the engine the gradients of a loss of those outputs."""
        if self.parts == 1:
            self._backward(loss, last=True)
            return
        assert self._outputs is not None, "forward comes first"
        rows, subjects = _flat(self._outputs)
        kept = torch.autograd.grad(loss, [*rows, *subjects], allow_unused=True)
        for part, places in enumerate(self._places):
            outputs, apart = _flat(self._pass(part))
            pieces = [
                (output * gradient[places.to(output.device)]).sum()
                for output, gradient in zip(outputs, kept[: len(rows)], strict=True)
                if gradient is not None
            ]
            pieces += [
                (output * gradient.chunk(self.parts)[part]).sum()
                for output, gradient in zip(apart, kept[len(rows) :], strict=True)
                if gradient is not None
            ]
            self._backward(torch.stack(pieces).sum(), last=part == self.parts - 1)
        self._outputs = None

    def _pass(self, part: int) -> Outputs:
        """One pass forward of a part, from its random state."""
        asked = self._noised
        if self.parts > 1 and asked is not None:
            places = self._places[part]
            asked = {
                name: Noised(*(rows[places.to(rows.device)] for rows in told)) for name, told in asked.items()
            }
        self._seed(part)
        return self._forward(self._responses[part], asked)


def _flat(outputs: Outputs) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs with a row for every row of the batch, and those of one subject's rows each."""
    rows = [outputs.latent]
    for some in (outputs.features, outputs.directions, outputs.denoised):
        rows += some.values()
    return rows, [*outputs.rebuilt.values(), *outputs.returned.values()]


def split_rows(counts: Sequence[int], parts: int) -> list[Tensor]:
    """Rows of subjects that stand one after another, `counts` of each, cut so that every part holds every subject."""
    by_subject = [rows.tensor_split(parts) for rows in torch.arange(sum(counts)).split(list(counts))]
    return [torch.cat([rows[part] for rows in by_subject]) for part in range(parts)]


def joined_outputs(found: Sequence[Outputs], places: Sequence[Tensor]) -> Outputs:
    """The outputs for all rows in their order, from those of parts whose rows were `places`."""
    back = torch.cat(list(places)).argsort()

    def whole(pieces: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(pieces))[back.to(pieces[0].device)]

    def each(pieces: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        return {name: whole([piece[name] for piece in pieces]) for name in pieces[0]}

    def by_subject(pieces: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        # One subject's rows stand one part after another.
        return {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}

    latent, features, directions, denoised, rebuilt, returned = zip(*found, strict=True)
    rows = whole(latent), each(features), each(directions), each(denoised)
    return Outputs(*rows, by_subject(rebuilt), by_subject(returned))
