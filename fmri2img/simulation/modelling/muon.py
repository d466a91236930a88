"""Muon (Jordan et al. 2024): matrices take steps whose singular values are all near one, so rare directions learn too.

Small transformers and networks of convolutions need a half to a third of the steps that AdamW takes here.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
WEIGHT_DECAY = 0.01
ITERATIONS = 5
POLYNOMIAL = (3.4445, -4.7750, 2.0315)
"""Of the Newton-Schulz iteration: steep at zero, and between 0.7 and 1.2 after five times."""


class Muon:
    """The optimiser of some parameters, by name; kernels (out, in, h, w) count as matrices (out, in x h x w)."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], rate: float) -> None:
        self._parameters, self._rate = parameters, rate
        self.momentum = {name: torch.zeros_like(p) for name, p in parameters.items()}

    def step(self, share: float, threads: ThreadPoolExecutor) -> None:
        """One step along the gradients, at a share of the rate; each matrix is one thread's."""
        list(threads.map(lambda name: self._step(name, self._rate * share), self._parameters))

    @torch.no_grad()
    def _step(self, name: str, rate: float) -> None:
        parameter, momentum = self._parameters[name], self.momentum[name]
        gradient = parameter.grad
        if gradient is None:
            raise AssertionError(f"{name} has no gradient")
        momentum.lerp_(gradient, 1 - MOMENTUM)
        ahead = gradient.lerp(momentum, MOMENTUM).flatten(1)  # Nesterov's
        tall = max(1.0, ahead.shape[0] / ahead.shape[1]) ** 0.5
        parameter.mul_(1 - rate * WEIGHT_DECAY)
        parameter.add_(orthogonal(ahead).view_as(parameter), alpha=-rate * tall)


def orthogonal(matrix: Tensor) -> Tensor:
    """A matrix (n, m) with singular values moved near one by Newton-Schulz iterations in bfloat16."""
    a, b, c = POLYNOMIAL
    x = (matrix.T if matrix.shape[0] > matrix.shape[1] else matrix).bfloat16()
    x = x / (x.norm() + 1e-7)
    for _ in range(ITERATIONS):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    found = x.float()
    return found.T if matrix.shape[0] > matrix.shape[1] else found
