"""How many bytes a rank needs for one setting of ZeRO: what lies where in each phase of a run, item by item.

The parts of mixed-precision Adam and how ZeRO divides them are those of Rajbhandari et al. 2020 (SC, arXiv 1910.02054,
sections 3 and 5); offloading is ZeRO-Offload (Ren et al. 2021, arXiv 2101.06840). What DeepSpeed 0.19 adds to them
(buckets, copies while it reduces, updates and starts) was read in its code and measured; docs/plan.md derives it.

Legend: P parameters, W ranks, k bytes of a parameter in the precision of training, b elements of buffers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal

from fmri2img.trainer.config import TrainingConfig
from fmri2img.trainer.rehearsal import Counts, Trace

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# DeepSpeed's own defaults, in elements; `trainer/engines/zero.py` leaves them as they are.
BUCKET, PREFETCH, MOST_GATHERED, SUB_GROUP = 500_000_000, 50_000_000, 1_000_000_000, 1_000_000_000
Device = Literal["cpu", "gpu"]


@dataclass
class Phase:
    """Bytes of a rank in one phase, by item: on its device, and in the memory of its host."""

    name: str
    device: dict[str, float] = field(default_factory=dict)
    host: dict[str, float] = field(default_factory=dict)

    def total(self, where: Literal["device", "host"]) -> float:
        """The sum of all items."""
        return sum((self.device if where == "device" else self.host).values())

    def plus(
        self, name: str, device: dict[str, float] | None = None, host: dict[str, float] | None = None
    ) -> "Phase":
        """Another phase with further items."""
        return Phase(name, {**self.device, **(device or {})}, {**self.host, **(host or {})})


@dataclass(frozen=True)
class Footprint:
    """The phases of a run on one rank; on a CPU, device and host are one memory, and everything is the device's.

    `start` until the first step; `backward` forward and backward, `update`, `checkpoint` the copy for a checkpoint, and
    `writing` the largest of the steps on rank 0 while it writes those `written` bytes and training goes on.
    """

    phases: tuple[Phase, ...]
    written: float
    device: Device

    def phase(self, name: str) -> Phase:
        """One phase by name."""
        return next(phase for phase in self.phases if phase.name == name)

    @property
    def worst(self) -> Phase:
        """The phase with the largest peak on the device."""
        return max(self.phases, key=lambda phase: phase.total("device"))

    @property
    def device_peak(self) -> float:
        """The most bytes on the device; on a CPU those of rank 0."""
        return self.worst.total("device")

    @property
    def host_peak(self) -> float:
        """The most bytes of the host beside a GPU, of rank 0."""
        return max(phase.total("host") for phase in self.phases)


def refused(config: TrainingConfig) -> str | None:
    """Why the engine refuses this combination of stage, offload and precision, or None."""
    if config.zero_stage == 0 and config.precision != "float32":
        return f"stage 0 cannot train in {config.precision}"
    if config.zero_stage < {"none": 0, "optimizer": 1, "optimizer-and-parameters": 3}[config.offload]:
        return f"stage {config.zero_stage} cannot offload {config.offload}"
    return None


def footprint(counts: Counts, config: TrainingConfig, world: int, trace: Trace, device: Device) -> Footprint:
    """The bytes of a rank of `world`; a step is that of `trace`."""
    rank = _Rank(counts, config, world, trace, device == "gpu")
    rest, held = rank.resting(), {"checkpoint": rank.copies()}
    steps = [rest.plus("backward", *rank.stepping()), rest.plus("update", *rank.updating())]
    larger = max(steps, key=lambda phase: phase.total("device") + phase.total("host"))
    writing = larger.plus("writing", host=held)
    phases = [rank.starting(), *steps, rest.plus("checkpoint", *rank.saving()), writing]
    if device == "cpu":
        phases = [Phase(p.name, _joined(p.device, p.host)) for p in phases]
    return Footprint(tuple(phases), rank.copies(), device)


def _joined(device: dict[str, float], host: dict[str, float]) -> dict[str, float]:
    items = dict(device)
    for name, size in host.items():
        items[name] = items.get(name, 0) + size
    return items


class _Rank:
    """The sums of one setting. Each method gives items by name, of the device and of the host."""

    def __init__(self, counts: Counts, config: TrainingConfig, world: int, trace: Trace, gpu: bool) -> None:
        self.counts, self.config, self.world, self.trace, self.gpu = counts, config, world, trace, gpu
        self.P, self.k, self.stage = counts.parameters, BYTES[config.precision], config.zero_stage
        self.offloaded = config.offload != "none"
        self.split = config.micro_batches > 1
        # The parameters that a rank updates: all, or its part, rounded up.
        self.own = self.P if self.stage == 0 else -(-self.P // world)
        self.whole = touched(counts.groups, world)
        # The largest group is updated last or alone; at stage 3 in pieces.
        group = max(sum(group) for group in counts.groups)
        self.updated = (
            group if self.stage == 0 else min(-(-group // world), SUB_GROUP if self.stage == 3 else self.P)
        )

    def resting(self) -> Phase:
        """What lies there between steps."""
        device: dict[str, float] = {"buffers": 4 * self.counts.buffers}
        host: dict[str, float] = {}
        states = host if self.offloaded else device
        weights = host if self.config.offload == "optimizer-and-parameters" else device
        weights["weights"] = self.k * (self.own if self.stage == 3 else self.P)
        if self.stage > 0:
            states["float32 weights"] = 4 * self.own
        states["moments"] = 8 * self.own
        if self.config.ema:
            states["average"] = 4 * self.own
        if self.stage == 3:
            states["gradients"] = self.k * self.own
            device["buckets"] = self.k * (BUCKET if self.gpu else self._bucketed())
        if self.offloaded:
            host["float32 gradients"] = 4 * self.own
            if self.stage < 3:
                host["copies for the device"] = self.k * (self.own + self.counts.largest)
                device["largest gradient"] = self.k * self.counts.largest
        return Phase("rest", device, host)

    def stepping(self) -> tuple[dict[str, float], dict[str, float]]:
        """Beside what rests, at the worst moment of forward and backward."""
        before = float(self.k * self._kept_between())
        device: dict[str, float] = {}
        host: dict[str, float] = {}
        worst = -1.0
        for number, moment in enumerate(self.trace.moments):
            last = number == len(self.trace.moments) - 1
            items = {"activations": float(moment.alive), **self._reducing(moment.ready, last=last)}
            if sum(items.values()) > worst:
                worst, device = sum(items.values()), items
        if self.split and self.offloaded and self.stage < 3:
            host = {"gradients of micro-batches": before}
        elif self.split and before:
            device = {**device, "gradients of micro-batches": before}
        return device, host

    def _kept_between(self) -> int:
        """Elements of gradients kept from one micro-batch to the next."""
        return {0: self.P, 1: self.P, 2: self.whole, 3: 0}[self.stage]

    def _reducing(self, ready: int, *, last: bool) -> dict[str, float]:
        """Gradients and what it takes to reduce them, with `ready` elements of this micro-batch there."""
        k, content = self.k, self._bucketed()
        ready = self.P if last else ready % self.P
        # Gradients that wait for a bucket to be full are in it, all but those that no bucket can hold.
        reduces = last or ready > BUCKET
        if self.stage == 0:
            fresh = 0 if self.split else ready
            return {"gradients": k * fresh, "buckets": k * min(self.P, BUCKET) if last else 0}
        flat = min(max(content, self.counts.largest), BUCKET + self.counts.largest // self.world)
        if self.stage == 3:
            extra = self._gathered(ready)
            if reduces:
                extra = max(extra, k * content * (1 if self.gpu else 2))
            return {"gathered": extra}
        buckets = (2 * BUCKET if self.gpu else min(ready, content)) * k
        if (
            self.stage == 1 and self.split
        ):  # they stay whole until the last micro-batch, then they are the bucket
            buckets = 2 * BUCKET * k if self.gpu else 0
        # One bucket is copied to be reduced and only then kept; with more than one, some are kept already.
        several = self.P > BUCKET
        # A host's gradients leave the device at once, but for what their norm is taken of, in float64.
        kept = 8 * self.counts.largest if self.offloaded else k * self.whole
        copied = k * flat if self.world > 1 else 0
        held = kept + copied if several else max(kept, copied)
        return {"buckets": buckets, "gradients": held if reduces else 0}

    def _gathered(self, ready: int) -> float:
        """Whole parameters that stage 3 holds: as many as may be alive at once, and what comes next."""
        if self.world == 1:
            return 0
        most = max(MOST_GATHERED, self.counts.largest)
        left = self.P if ready == 0 else max(0, self.P - ready)
        coming = min(self.P, max(PREFETCH, self.counts.largest))
        doubled = 0 if self.gpu else coming  # gloo gathers into a list and copies it
        return self.k * (min(left, most) + (coming if self.gpu and left > most else doubled))

    def updating(self) -> tuple[dict[str, float], dict[str, float]]:
        """Beside what rests, in the optimiser's step."""
        on_device: dict[str, float] = {}
        host: dict[str, float] = {}
        if self.stage == 0:
            # On a GPU all parameters of a group at once; on a CPU one at a time, and the divisor of the one before.
            temporary = self.updated if self.gpu else 3 * self.counts.largest
            return {"gradients": 4.0 * self.P, "Adam's divisors": 4.0 * temporary}, {}
        copies = 1 if self.gpu and not self.offloaded else 2
        (host if self.offloaded else on_device)["Adam's divisors"] = 4.0 * copies * self.updated
        if not self.offloaded:
            on_device["float32 gradients"] = 4.0 * self.updated
            if self.stage < 3:
                on_device["gradients"] = float(self.k * self.whole)
        return on_device, host

    def copies(self) -> float:
        """Bytes of a checkpoint in the memory of the host: weights and moments whole, averages, the best weights."""
        model = 4 * (self.P + self.counts.buffers)
        further = (self.config.ema > 0) + (self.config.select == "best")
        return float(model * (1 + further) + 8 * self.P)

    def saving(self) -> tuple[dict[str, float], dict[str, float]]:
        """Beside what rests, when a checkpoint has been copied: every rank copies, rank 0 keeps."""
        one = 4.0 * self.counts.largest
        device = {"largest parameter": one * {0: 0, 1: 1, 2: 1, 3: 2}[self.stage]}
        host = {"checkpoint": self.copies()}
        if self.gpu:
            host["largest parameter"] = one  # copied over, and copied there
            if self.config.ema and not self.offloaded:
                # While averages stand in their place. On a CPU moments, copied later, take more.
                device["weights set aside"] = 4.0 * self.own
        return device, host

    def starting(self) -> Phase:
        """The decoder is made on the host, moved, and its float32 weights and first gradients are laid out."""
        P, k, b, own, largest = self.P, self.k, self.counts.buffers, self.own, self.counts.largest
        host = {"weights as they were made": 4.0 * P} if k < 4 else {}
        if self.gpu:
            host["decoder as it was made"] = 4.0 * (P + b)
        device: dict[str, float] = {"buffers": 4.0 * b}
        if self.stage == 0:
            return Phase("start", {**device, "weights": float(k * P)}, host)
        device["weights"] = float(k * (own if self.stage == 3 else P))
        states = {"float32 weights": 4.0 * own, "float32 gradients": 4.0 * own}
        if self.offloaded:
            if self.stage < 3:
                states["copies for the device"] = float(k * (own + 2 * largest))
            else:
                states["zeros"] = 4.0 * own
        if self.stage == 3 and k == 4:
            device["largest parameters"] = 8.0 * largest  # measured; where they come from was not found
        # Before that, weights lie there twice: as they came and in their new place.
        twice = float(k * P)
        if self.offloaded and self.gpu:
            return Phase("start", {**device, "weights as they came": twice}, {**host, **states})
        further = {"weights as they came": twice} if twice > sum(states.values()) else states
        return Phase("start", {**device, **further}, host)

    def _bucketed(self) -> int:
        """Elements of the fullest bucket; larger parameters go by themselves."""
        return min(sum(n for group in self.counts.groups for n in group if n <= BUCKET), BUCKET)


def touched(groups: Sequence[Sequence[int]], world: int) -> int:
    """Elements of all parameters of which the rank with most has at least a part, at stages 1 and 2.

    Each group is cut into equal parts, and parameters at the cuts are whole in the gradients of both neighbours.
    """
    totals = [0] * world
    for group in groups:
        part = -(-sum(group) // world)
        ends = list(accumulate(group))
        for number in range(world):
            low, high = number * part, (number + 1) * part
            totals[number] += sum(
                n for n, end in zip(group, ends, strict=True) if end > low and end - n < high
            )
    return max(totals)
