"""One step of training on tensors without memory: what it would keep alive, and how much it would compute.

The step is the real one (decoder, losses, micro-batches) on PyTorch's meta device, where tensors have shapes and no
bytes, so that a decoder of billions of parameters is rehearsed in seconds on any machine.
"""

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from fmri2img.models.decoder import MultiSubjectDecoder, Outputs, decay_groups
from fmri2img.models.prior import Noised
from fmri2img.models.spaces import TargetSpace
from fmri2img.trainer.config import Recipe, TrainingConfig
from fmri2img.trainer.objectives import (
    Draws,
    MicroBatches,
    Mixing,
    Place,
    active_mixing,
    decoder_loss,
    noised,
)
from fmri2img.trainer.objectives.composite import POOLED

_KINDS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Of a loss over pairs, for each row of another rank: the list it is gathered in and their concatenation, of directions
# and of targets, and both again divided by their lengths, which backward needs.
_GATHERED = 6


@dataclass(frozen=True)
class Counts:
    """Elements of a decoder: parameters by part, those of each optimiser group in order, and buffers."""

    parts: dict[str, int]
    groups: tuple[tuple[int, ...], ...]
    buffers: int

    @property
    def parameters(self) -> int:
        """All parameters."""
        return sum(self.parts.values())

    @property
    def largest(self) -> int:
        """The largest parameter."""
        return max(max(group) for group in self.groups)


@dataclass(frozen=True)
class Moment:
    """A stretch of a step that ends when a gradient is ready: the most bytes that were alive beside weights and
    gradients, and how many elements of gradients were ready before."""

    alive: int
    ready: int


@dataclass(frozen=True)
class Trace:
    """A step of one rank: its moments in order, and its floating-point operations, two a multiplication."""

    moments: tuple[Moment, ...]
    flops: int

    @property
    def most(self) -> int:
        """The most bytes of activations at any moment."""
        return max(moment.alive for moment in self.moments)


def meta_decoder(
    recipe: Recipe, voxels: Mapping[str, int], spaces: Mapping[str, TargetSpace]
) -> MultiSubjectDecoder:
    """The recipe's decoder without memory."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return recipe.decoder.build(voxels, spaces)


def count(decoder: MultiSubjectDecoder, config: TrainingConfig) -> Counts:
    """The elements of a decoder as `config` trains it."""
    parts: dict[str, int] = {}
    for name, parameter in decoder.named_parameters():
        part = name.split(".")[0]
        parts[part] = parts.get(part, 0) + parameter.numel()
    groups: list[Any] = decay_groups(decoder, config.weight_decay, rates=config.rates)
    numels = tuple(tuple(p.numel() for p in group["params"]) for group in groups)
    return Counts(parts, numels, sum(buffer.numel() for buffer in decoder.buffers()))


def rehearse(decoder: MultiSubjectDecoder, recipe: Recipe, config: TrainingConfig, world: int) -> Trace:
    """The step of one of `world` ranks that keeps most alive, of those at the beginning, the middle and the end.

    `decoder` is one of `meta_decoder`; its parameters get the precision of `config`.
    """
    kind = _KINDS[config.precision]
    for parameter in decoder.parameters():
        parameter.data = parameter.data.to(kind)
    places = [Place(step, config.steps) for step in sorted({0, config.steps // 2, max(0, config.steps - 1)})]
    found: dict[object, Trace] = {}
    for place in places:
        every = [(name, loss) for name, space in recipe.spaces.items() for loss in space.losses]
        active = tuple((name, key) for name, (key, loss) in every if loss.active(place))
        if active not in found:
            found[active] = _step(decoder, recipe, config, world, place)
    worst = max(found.values(), key=lambda trace: trace.most)
    return Trace(worst.moments, max(trace.flops for trace in found.values()))


def _step(
    decoder: MultiSubjectDecoder, recipe: Recipe, config: TrainingConfig, world: int, place: Place
) -> Trace:
    kind, each = _KINDS[config.precision], config.global_batch // (world * len(decoder.subjects))
    voxels, every = decoder.layout().voxels, config.global_batch // world
    live = _Live(decoder)

    def forward(responses: Mapping[str, Tensor], asked: Mapping[str, Noised] | None) -> Outputs:
        told = {name: one._replace(noisy=one.noisy.to(kind)) for name, one in (asked or {}).items()}
        latent, *others = decoder(
            {name: value.to(kind) for name, value in responses.items()}, None if asked is None else told
        )
        return Outputs(
            latent.float(), *({name: value.float() for name, value in some.items()} for some in others)
        )

    decoder.train()
    with (
        torch.random.fork_rng(devices=[]),
        torch.device("meta"),
        FlopCounterMode(display=False) as counter,
        live,
        _hooks(decoder, live),
    ):
        live.pooled(_pooled(decoder, recipe, place) * (config.global_batch - every) * 4 * _GATHERED)
        responses = {name: torch.empty(each, width) for name, width in voxels.items()}
        features = {name: torch.empty(every, *decoder.branch(name).shape) for name in decoder.branches}
        draws = {name: _draws(every, prod(decoder.branch(name).shape)) for name in decoder.priors}
        mixing = None
        if active_mixing([space.losses for space in recipe.spaces.values()], place) is not None:
            mixing = Mixing(torch.empty(every, dtype=torch.int64), torch.empty(every))
            responses = mixing.mix_responses(responses)
        micro = MicroBatches(
            forward,
            lambda loss, last: loss.backward(),
            responses,
            parts=config.micro_batches,
            seed=lambda part: None,
            noised=noised(decoder, features, draws, mixing),
        )
        loss = decoder_loss(
            decoder,
            micro.forward(),
            features,
            torch.empty(every, dtype=torch.int64),
            {name: space.losses for name, space in recipe.spaces.items()},
            place=place,
            mixing=mixing,
            draws=draws,
            whole=recipe.losses,
            responses=responses,
        )
        micro.backward(loss.backward)
    return Trace(live.moments(), int(counter.get_total_flops()))


def _draws(rows: int, size: int) -> Draws:
    step = torch.zeros(rows, dtype=torch.int64)
    return Draws(torch.empty(rows, size), step, torch.zeros(rows, 2, dtype=torch.bool))


def _pooled(decoder: MultiSubjectDecoder, recipe: Recipe, place: Place) -> int:
    """Features of a row, of all spaces whose losses see the global batch."""
    active = {
        name: [kind for kind, loss in space.losses if kind in POOLED and loss.active(place)]
        for name, space in recipe.spaces.items()
    }
    return sum(prod(decoder.branch(name).shape) for name, kinds in active.items() if kinds)


class _Live(TorchDispatchMode):
    """Adds up the bytes of all storages that operations make, until each is freed."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.now = self.peak = self.ready = 0
        self._moments: list[Moment] = []
        held = [*decoder.parameters(), *decoder.buffers()]
        self._known = {value.untyped_storage()._cdata for value in held}
        self._held = held  # their addresses must not be given to others

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in torch.utils._pytree.tree_leaves(out):
            if isinstance(value, Tensor):
                self._take(value)
        return out

    def pooled(self, size: int) -> None:
        """What other ranks' rows come to, which a rehearsal in one process does not see."""
        self.now += size

    def gradient(self, parameter: Tensor) -> None:
        """The gradient of a parameter is ready, and is no activation any more."""
        self._end()
        self.ready += parameter.numel()
        parameter.grad = None

    def moments(self) -> tuple[Moment, ...]:
        """All moments of the step."""
        self._end()
        return tuple(self._moments)

    def _end(self) -> None:
        self._moments.append(Moment(self.peak, self.ready))
        self.peak = self.now

    def _take(self, value: Tensor) -> None:
        storage = value.untyped_storage()
        address = storage._cdata
        if address in self._known:
            return
        size = storage.nbytes()
        self._known.add(address)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, address, size)

    def _free(self, address: int, size: int) -> None:
        self._known.discard(address)
        self.now -= size


@contextmanager
def _hooks(decoder: nn.Module, live: _Live) -> Iterator[None]:
    hooks = [
        parameter.register_post_accumulate_grad_hook(live.gradient) for parameter in decoder.parameters()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
