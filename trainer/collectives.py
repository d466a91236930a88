"""The few collective operations that training needs. Alone in a process, each is the identity."""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from fmri2img.errors import Fmri2imgError, InputError, StoppedError

T = TypeVar("T")


def distributed() -> bool:
    """True inside a process group."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if distributed() else 0


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if distributed() else 1


class _Gather(torch.autograd.Function):
    """Rows of all ranks, rank after rank. The gradient is the slice of this rank's own rows.

    Every rank computes the same loss from the gathered rows, so its own slice of the gradient is the whole derivative
    with respect to its rows; no communication is needed in backward. See `objectives.py` for the factor this asks for.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(world_size())]
        dist.all_gather(parts, rows.contiguous())
        ctx.slice = slice(rank() * len(rows), (rank() + 1) * len(rows))
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0][ctx.slice]


def gather_rows(rows: Tensor) -> Tensor:
    """(n, ...) of every rank to (world * n, ...), with gradients for the own rows. n must be equal on all ranks."""
    if world_size() == 1:
        return rows
    gathered: Tensor = _Gather.apply(rows)
    return gathered


def mean_over_ranks(values: Sequence[float]) -> list[float]:
    """The mean over ranks of each number, in float64."""
    if world_size() == 1:
        return list(values)
    tensor = torch.tensor(list(values), dtype=torch.float64)
    dist.all_reduce(tensor)
    return [float(value) / world_size() for value in tensor]


def gather_objects(value: T) -> list[T]:
    """One object of each rank, in rank order. For small things only."""
    if world_size() == 1:
        return [value]
    parts: list[Any] = [None] * world_size()
    dist.all_gather_object(parts, value)
    return parts


def broadcast_object(value: T) -> T:
    """Rank 0's object on every rank. For small things only."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def fail_together(error: Exception | None) -> None:
    """Raise on every rank when any rank has an error, so that no rank waits for one that left."""
    told = gather_objects(None if error is None else (type(error).__name__, str(error), _exit_code(error)))
    if error is not None:
        raise error
    for number, story in enumerate(told):
        if story is not None:
            kinds = {kind.exit_code: kind for kind in (InputError, StoppedError)}
            raise kinds.get(story[2], Fmri2imgError)(f"rank {number} failed with {story[0]}: {story[1]}")


def _exit_code(error: Exception) -> int:
    return error.exit_code if isinstance(error, Fmri2imgError) else 1
