"""What stops or warns a run that would train wrongly or slowly without a word."""

import hashlib
import heapq
from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

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
    """Compares the order of gradients over ranks before a step's backward passes.

    ZeRO fills its buckets in this order and takes it to be the same on every rank; where it is not, gradients end in
    other parameters' places and nothing is said (stages 1 to 3, DeepSpeed 0.19). At stage 3 a rank whose forward pass
    differs fails or waits earlier, in the gathering of parameters.
    """

    def __init__(self, module: nn.Module) -> None:
        self._names = {id(parameter): name for name, parameter in module.named_parameters()}

    def check(self, loss: Tensor, step: int) -> None:
        """Raise Fmri2imgError on all ranks unless all compute the same graph. Collective."""
        order = gradient_order(loss, self._names)
        digest = hashlib.sha256("\n".join(order).encode()).hexdigest()
        if len(set(gather_objects(digest))) == 1:
            return
        raise Fmri2imgError(f"step {step}: {_difference(gather_objects(order))}")


def _difference(orders: list[list[str]]) -> str:
    other = next(rank for rank, order in enumerate(orders) if order != orders[0])
    pairs = zip_longest(orders[0], orders[other], fillvalue="none")
    place, (one, two) = next((n, pair) for n, pair in enumerate(pairs) if pair[0] != pair[1])
    return (
        f"ranks compute different graphs: gradient {place} is of {one} on rank 0 and of {two} on rank {other}: "
        "nothing of this step was applied; the model and its losses must use every subject and parameter in the same "
        "order on every rank, since ZeRO mixes gradients up otherwise"
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
