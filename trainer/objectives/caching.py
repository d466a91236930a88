"""A step in micro-batches whose losses are those of the whole batch: gradient caching.

A loss over pairs needs all rows at once, memory holds only some of them with their graph. So all micro-batches go
forward without a graph; the loss and its gradient with respect to the outputs are computed once, for the whole batch;
then each goes forward again, with the same dropout, and backward from the gradient that was kept (Gao et al. 2021,
arXiv 2101.06983). They cache only the embeddings that a contrastive loss reads; here every output goes through the
cache, so that one code path serves any sum of losses.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from fmri2img.trainer.objectives.composite import Outputs

Forward = Callable[[Mapping[str, Tensor]], Outputs]


class Backward(Protocol):
    """Adds the gradients of a loss to those of the step."""

    def __call__(self, loss: Tensor, *, last: bool) -> None: ...


class MicroBatches:
    """One step's rows of a rank, split so that every micro-batch holds every subject, in the same order.

    `seed(part)` sets the random state before part's forward passes, the same for both. With one part it is the plain
    step: one pass forward, one backward. `parts` must divide the rows of each subject.
    """

    def __init__(
        self,
        forward: Forward,
        backward: Backward,
        responses: Mapping[str, Tensor],
        *,
        parts: int,
        seed: Callable[[int], None],
    ) -> None:
        self._forward, self._backward, self._seed, self.parts = forward, backward, seed, parts
        self._responses = [
            {name: rows.chunk(parts)[part] for name, rows in responses.items()} for part in range(parts)
        ]
        places = torch.arange(sum(len(rows) for rows in responses.values()))
        by_subject = places.split([len(rows) for rows in responses.values()])
        self._places = [torch.cat([rows.chunk(parts)[part] for rows in by_subject]) for part in range(parts)]
        self._outputs: Outputs | None = None

    def forward(self) -> Outputs:
        """The outputs for all rows, in the order of the whole batch, to compute a loss from."""
        if self.parts == 1:
            self._seed(0)
            return self._forward(self._responses[0])
        found: list[Outputs] = []
        with torch.no_grad():
            for part, responses in enumerate(self._responses):
                self._seed(part)
                found.append(self._forward(responses))
        back = torch.cat(self._places).argsort()

        def whole(pieces: list[Tensor]) -> Tensor:
            return torch.cat(pieces)[back.to(pieces[0].device)].requires_grad_()

        latents, features, directions = zip(*found, strict=True)
        self._outputs = (
            whole(list(latents)),
            {name: whole([piece[name] for piece in features]) for name in features[0]},
            {name: whole([piece[name] for piece in directions]) for name in directions[0]},
        )
        return self._outputs

    def backward(self, loss: Tensor) -> None:
        """Give the engine the gradients of a loss of those outputs."""
        if self.parts == 1:
            self._backward(loss, last=True)
            return
        assert self._outputs is not None, "forward comes first"
        whole = _flat(self._outputs)
        kept = torch.autograd.grad(loss, whole, allow_unused=True)
        for part, (responses, places) in enumerate(zip(self._responses, self._places, strict=True)):
            self._seed(part)
            outputs = _flat(self._forward(responses))
            pieces = [
                (output * gradient[places.to(output.device)]).sum()
                for output, gradient in zip(outputs, kept, strict=True)
                if gradient is not None
            ]
            self._backward(torch.stack(pieces).sum(), last=part == self.parts - 1)
        self._outputs = None


def _flat(outputs: Outputs) -> list[Tensor]:
    latent, features, directions = outputs
    return [latent, *features.values(), *directions.values()]
