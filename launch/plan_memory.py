"""Which settings of ZeRO fit the memory of a device, and the smallest changes of a setting that does not."""

from collections.abc import Iterator
from functools import cached_property
from itertools import islice
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from fmri2img.errors import InputError
from fmri2img.models.decoder import MultiSubjectDecoder
from fmri2img.trainer.config import Recipe, TrainingConfig
from fmri2img.trainer.footprint import Device, Footprint, footprint, refused
from fmri2img.trainer.loop import check_layout
from fmri2img.trainer.rehearsal import Counts, Trace, count, rehearse

# Of a GPU's memory, what is left to CUDA's context, NCCL, libraries' workspaces and gaps between blocks. Assumed.
KEPT_FREE = 0.08
MOST_PARTS = 16
_ALL_OFFLOADS: tuple[str, ...] = ("none", "optimizer", "optimizer-and-parameters")


def say_bytes(size: float) -> str:
    """A size as a person reads it."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


class Setting(BaseModel):
    """One way to train: what of a recipe decides memory, and what a rank needs; sizes in bytes.

    `items` are those of the phase with the device's largest peak. `fits` is None where the device's memory is unknown.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    workers: int
    zero_stage: int
    offload: str
    micro_batches: int
    precision: str
    global_batch: int
    refused: str | None = None
    device_peak: float = 0.0
    phase: str = ""
    items: dict[str, float] = {}
    host_peak: float = 0.0
    fits: bool | None = None

    def told(self, other: "Setting") -> str:
        """How this setting is made of another one, as flags."""
        keys = ("zero_stage", "offload", "micro_batches", "precision", "global_batch")
        flags = [
            f"--set pretraining.{key}={getattr(self, key)}"
            for key in keys
            if getattr(self, key) != getattr(other, key)
        ]
        if self.workers != other.workers:
            flags.insert(0, f"--workers {self.workers}")
        return " ".join(flags)


class Memory:
    """Settings of one recipe and decoder on one kind of device; what was rehearsed once is kept.

    `decoder` is one of `meta_decoder`. `limit` are the bytes of a device (of a worker, on a CPU), None where unknown;
    `data` what a rank keeps of the data set, on a CPU in the same memory.
    """

    def __init__(
        self,
        recipe: Recipe,
        decoder: MultiSubjectDecoder,
        config: TrainingConfig,
        device: Device,
        *,
        limit: float | None,
        data: float,
    ) -> None:
        self.recipe, self.decoder, self.config, self.device = recipe, decoder, config, device
        self.limit, self.data = limit, data
        self._traces: dict[tuple[Any, ...], Trace] = {}

    @cached_property
    def counts(self) -> Counts:
        """The decoder's elements."""
        return count(self.decoder, self.config)

    def trace(self, config: TrainingConfig, workers: int) -> Trace:
        """The rehearsal of a rank's step."""
        key = config.global_batch, workers, config.micro_batches, config.precision
        if key not in self._traces:
            self._traces[key] = rehearse(self.decoder, self.recipe, config, workers)
        return self._traces[key]

    def footprint(self, config: TrainingConfig, workers: int) -> Footprint:
        """Every phase of a rank."""
        return footprint(self.counts, config, workers, self.trace(config, workers), self.device)

    def setting(self, workers: int, **changes: Any) -> Setting:
        """What a setting needs. Raises InputError where its batch cannot be divided."""
        config = self.config.model_copy(update=changes)
        check_layout(config, self.decoder.subjects, world=workers)
        keys = ("zero_stage", "offload", "micro_batches", "precision", "global_batch")
        told = {"workers": workers, **{key: getattr(config, key) for key in keys}}
        why = refused(config)
        if why is not None:
            return Setting(**told, refused=why, fits=False)
        found = self.footprint(config, workers)
        peak = found.device_peak + (self.data if self.device == "cpu" else 0)
        return Setting(
            **told,
            device_peak=peak,
            phase=found.worst.name,
            items={name: size for name, size in found.worst.device.items() if size},
            host_peak=0.0 if self.device == "cpu" else found.host_peak + self.data,
            fits=None if self.limit is None else peak <= (1 - self._free) * self.limit,
        )

    @property
    def _free(self) -> float:
        return KEPT_FREE if self.device == "gpu" else 0.0

    def stages(self, workers: int) -> list[Setting]:
        """Every stage with every offload that it can have, everything else as in the recipe."""
        pairs = [(0, "none"), *((stage, how) for stage in (1, 2, 3) for how in _ALL_OFFLOADS[:2])]
        pairs.append((3, _ALL_OFFLOADS[2]))
        return [self.setting(workers, zero_stage=stage, offload=how) for stage, how in pairs]

    def nearest(self, workers: int) -> list[Setting]:
        """The smallest change of each kind after which a rank fits: stage and micro-batches, more workers.

        Where those two are not enough: offload, bfloat16, a smaller batch.
        """

        def first(kind: Iterator[Setting]) -> list[Setting]:
            return list(islice((one for one in kind if one.fits), 1))

        found = [*first(self._changes(workers)), *first(self._more_workers(workers))]
        if found:
            return found
        return [
            *first(self._changes(workers, offload=True)),
            *first(self._changes(workers, precision="bfloat16")),
            *first(self._smaller_batches(workers)),
        ]

    def _changes(
        self, workers: int, *, offload: bool = False, precision: Literal["bfloat16"] | None = None
    ) -> Iterator[Setting]:
        """Higher stages first, since they change no figure; then more micro-batches, which cost another pass."""
        now = self.config
        kind = precision or now.precision
        if precision and now.precision != "float32":
            return
        for parts in self._parts(workers):
            for stage in range(now.zero_stage, 4):
                hows = _ALL_OFFLOADS[1 : 3 if stage == 3 else 2] if offload else (now.offload,)
                for how in hows:
                    changes = {"zero_stage": stage, "offload": how, "micro_batches": parts}
                    yield self.setting(workers, precision=kind, **changes)

    def _more_workers(self, workers: int) -> Iterator[Setting]:
        now = self.config
        for more in range(workers + 1, now.lanes + 1):
            for stage in range(now.zero_stage, 4):
                try:
                    yield self.setting(more, zero_stage=stage)
                except InputError:  # not a number of workers that the lanes allow
                    break

    def _smaller_batches(self, workers: int) -> Iterator[Setting]:
        unit = self.config.lanes * len(self.decoder.subjects)
        batch = self.config.global_batch // 2 // unit * unit
        while batch:
            yield self.setting(workers, global_batch=batch, micro_batches=1, zero_stage=3)
            batch = batch // 2 // unit * unit

    def _parts(self, workers: int) -> list[int]:
        now, rows = (
            self.config.micro_batches,
            self.config.global_batch // (workers * len(self.decoder.subjects)),
        )
        return [n for n in range(now, min(rows, MOST_PARTS) + 1) if rows % n == 0]
