"""An exponential moving average of the weights (Polyak and Juditsky 1992), kept where the float32 weights are.

At every ZeRO stage a rank averages just the part of the float32 weights that it updates, element by element, so the
average is that of a single process and costs no communication until it is asked for.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fmri2img.models.decoder import MultiSubjectDecoder


class Average:
    """Averages of `masters()`, the float32 weights of this rank; the list may hold other objects at each call.

    The decay of update `n` (from 1) is `min(decay, n / (n + 9))`, so that the start is forgotten early.
    """

    def __init__(self, decay: float, masters: Callable[[], Sequence[Tensor]]) -> None:
        self.decay, self._masters = decay, masters
        self._shadows = [master.detach().clone() for master in masters()]

    @torch.no_grad()
    def update(self, updates: int) -> None:
        """Take in the weights after update number `updates`."""
        keep = min(self.decay, updates / (updates + 9))
        for shadow, master in zip(self._shadows, self._masters(), strict=True):
            shadow.lerp_(master.detach().to(shadow.dtype), 1 - keep)

    @contextmanager
    @torch.no_grad()
    def in_place(self) -> Iterator[None]:
        """Put the averages where the weights are, for as long as the context lasts."""
        masters = self._masters()
        kept = [master.detach().clone() for master in masters]
        for master, shadow in zip(masters, self._shadows, strict=True):
            master.data.copy_(shadow)
        try:
            yield
        finally:
            for master, before in zip(masters, kept, strict=True):
                master.data.copy_(before)

    @contextmanager
    @torch.no_grad()
    def taking(self) -> Iterator[None]:
        """Whatever the context writes into the weights becomes the averages; the weights stay as they were."""
        masters = self._masters()
        kept = [master.detach().clone() for master in masters]
        yield
        for shadow, master, before in zip(self._shadows, masters, kept, strict=True):
            shadow.copy_(master)
            master.data.copy_(before)


class Averaging:
    """What both engines do with the averages that they keep, if any; a subclass says how a whole weight is set."""

    average: Average | None
    decoder: MultiSubjectDecoder

    def model_tensors(self) -> dict[str, Tensor]:
        """The whole model in float32 on the CPU. Collective."""
        raise NotImplementedError

    def _set_weight(self, parameter: nn.Parameter, value: Tensor) -> None:
        raise NotImplementedError

    def ema_tensors(self) -> dict[str, Tensor]:
        """The whole model with averaged weights, or nothing where none are kept. Collective."""
        if self.average is None:
            return {}
        with self.average.in_place():
            return self.model_tensors()

    def load_ema(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from averaged weights that `ema_tensors` gave. Collective."""
        if self.average is not None and tensors:
            with self.average.taking():
                for name, parameter in self.decoder.named_parameters():
                    self._set_weight(parameter, tensors[name])
