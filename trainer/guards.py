"""What stops or warns a run that would train wrongly or slowly without a word."""

import hashlib
import heapq
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any, NoReturn

from torch import Tensor, nn

from fmri2img.errors import Fmri2imgError
from fmri2img.trainer.collectives import gather_objects

# Above this share of the time, at so many records in a row, waiting for data is worth a word.
WAIT_SHARE = 0.2
WAIT_RECORDS = 5


def gradient_order(loss: Tensor, names: Mapping[int, str]) -> list[str]:
    """Parameters in the order in which a backward pass from `loss` completes their gradients.

    `names` is by `id` of the parameter. It is the order in which their gradient hooks fire, found without running
    them: like autograd's engine, walk the graph from the loss, of the nodes that nothing is missing for the one that
    was recorded last, and leaves at once.
    """
    missing: dict[Any, int] = {}
    found, seen = [loss.grad_fn], {loss.grad_fn}
    while found:
        for node, _ in found.pop().next_functions:  # type: ignore[union-attr]
            if node is not None:
                missing[node] = missing.get(node, 0) + 1
                if node not in seen:
                    seen.add(node)
                    found.append(node)
    order: list[str] = []
    ready: list[tuple[int, int, Any]] = [(0, 0, loss.grad_fn)]
    pushed = 0
    while ready:
        node = heapq.heappop(ready)[-1]
        leaf = getattr(node, "variable", None)
        if leaf is not None and id(leaf) in names:
            order.append(names[id(leaf)])
        for following, _ in node.next_functions:
            if following is None:
                continue
            missing[following] -= 1
            if not missing[following]:
                pushed += 1
                is_leaf = hasattr(following, "variable")
                rank = -(2**62) if is_leaf else -following._sequence_nr()
                heapq.heappush(ready, (rank, pushed, following))
    return order


class GraphGuard:
    """Compares over ranks, at one step, the order of gradients before backward passes and, if asked, of modules.

    ZeRO fills its buckets in the order of gradients and takes it to be the same on every rank; where it is not,
    gradients end in other parameters' places and nothing is said (stages 1 to 3, DeepSpeed 0.19). At stage 3 parameters
    are gathered as modules are called, so ranks that call others would wait for each other for ever, or take one
    parameter for another; there `forward` is told to compare `modules` too.
    """

    def __init__(self, module: nn.Module, step: int, *, modules: bool = False) -> None:
        self.step = step
        self._names = {id(parameter): name for name, parameter in module.named_parameters()}
        self._modules = list(module.named_modules()) if modules else []

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Raise Fmri2imgError on all ranks as soon as the pass within calls another module on one. Collective."""
        called = 0

        def call(name: str) -> None:
            nonlocal called
            told = gather_objects(name)
            if len(set(told)) > 1:
                other = next(rank for rank, theirs in enumerate(told) if theirs != told[0])
                self._refuse(f"call {called} of its forward pass", told[0], told[other], other)
            called += 1

        # Before ZeRO's own hooks, which gather the parameters of the module.
        hooks = [
            module.register_forward_pre_hook(lambda *_, name=name: call(name or "the whole"), prepend=True)
            for name, module in self._modules
        ]
        try:
            yield
            if hooks:
                call("none")
        finally:
            for hook in hooks:
                hook.remove()

    def check(self, loss: Tensor) -> None:
        """Raise Fmri2imgError on all ranks unless all compute the same graph. Collective."""
        order = gradient_order(loss, self._names)
        digest = hashlib.sha256("\n".join(order).encode()).hexdigest()
        if len(set(gather_objects(digest))) == 1:
            return
        orders = gather_objects(order)
        other = next(rank for rank, theirs in enumerate(orders) if theirs != orders[0])
        pairs = zip_longest(orders[0], orders[other], fillvalue="none")
        place, (one, two) = next((n, pair) for n, pair in enumerate(pairs) if pair[0] != pair[1])
        self._refuse(f"gradient {place}", one, two, other)

    def _refuse(self, what: str, one: str, two: str, other: int) -> NoReturn:
        raise Fmri2imgError(
            f"step {self.step}: ranks compute different graphs: {what} is of {one} on rank 0 and of {two} on rank "
            f"{other}: nothing of this step was applied; the model and its losses must use every subject and parameter "
            "in the same order on every rank, since ZeRO mixes gradients up otherwise"
        )


class WaitGuard:
    """Says once that training waits for data, when it has done so for several records in a row."""

    def __init__(
        self, *, threads: int, remote: bool, share: float = WAIT_SHARE, records: int | None = None
    ) -> None:
        self.threads, self.remote, self.share = threads, remote, share
        self.records = WAIT_RECORDS if records is None else records
        self._row = 0
        self._told = False

    def hear(self, share: float) -> str | None:
        """Take in the share of a record; the warning, when it is time for it."""
        self._row = self._row + 1 if share > self.share else 0
        if self._told or self._row < self.records:
            return None
        self._told = True
        cache = (
            "a cache on a fast local disk with room for all of it (FMRI2IMG_CACHE, FMRI2IMG_CACHE_BYTES)"
            if self.remote
            else "the data set on a local disk"
        )
        return (
            f"training waits for data {share:.0%} of the time: stop and resume with {cache}, or with more "
            f"reading_threads than {self.threads}"
        )
