"""The plan of a pretraining job: what it needs of memory, disk and time on a cluster that may not be there yet.

Nothing is allocated and nothing is started; data sets are read as far as their manifest and indices.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from fmri2img.datasets import Dataset, Samples
from fmri2img.datasets.plan import SamplingPlan, hold_out
from fmri2img.errors import InputError
from fmri2img.launch.plan_devices import PlannedDevice
from fmri2img.launch.plan_measured import Measured, check_machine, measure_rank
from fmri2img.launch.plan_memory import Memory, Setting, say_bytes
from fmri2img.models.spaces import TargetSpace
from fmri2img.trainer.config import Recipe
from fmri2img.trainer.loop import check_layout
from fmri2img.trainer.rehearsal import meta_decoder
from fmri2img.trainer.stages import check_spaces

# Shares of the published peaks that training is taken to reach. Assumed; `--measure` replaces them.
OF_COMPUTE, OF_BANDWIDTH = 0.4, 0.8
# Bytes a second of a checkpoint that are copied to the memory of the host: measured on a CPU (lab log, 2026-11-21:
# 0.30 s per gigabyte of weights, with twice as much of moments); on a GPU assumed, over PCIe to pageable memory.
COPIED = {"cpu": 10e9, "gpu": 5e9}
AHEAD = 3  # batches that a worker reads ahead


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Layout(_Model):
    """How a step is shared out. `rows` of each subject are those of one rank."""

    lanes: int
    world_sizes: list[int]
    global_batch: int
    rows: int
    rows_by_rank: int
    micro_batches: int


class Data(_Model):
    """What is read: training trials, and by node the shards of its lanes with their bytes; bytes of a rank in memory.

    `cache` are the bytes that a node fetches where the data set is at an address, None where it is a folder.
    """

    trials: dict[str, int]
    shards: list[int]
    bytes_read: list[int]
    cache: list[int] | None
    held_by_rank: int
    fitted_on_rank_0: int


class Times(_Model):
    """Seconds. `step` is measured, or made of the published peaks at assumed shares; None where neither is there.

    `at_peak` is the least that the device could need. Communication between ranks is in neither; `wire` are the bytes
    that a rank sends and receives for a step.
    """

    source: str
    flops: int
    wire: int
    at_peak: float | None
    step: float | None
    steps: int
    steps_per_epoch: int
    epoch: float | None
    training: float | None


class CheckpointPlan(_Model):
    """Bytes of a checkpoint and of all that are kept, seconds that one keeps training, how many there are."""

    size: int
    kept: int
    stall: float
    count: int


class ReconstructionPlan(_Model):
    """Pictures of the test split, seconds each where measured, and all of them on the planned workers."""

    items: int
    seconds_each: float | None
    seconds: float | None


class Plan(_Model):
    """Everything that `fmri2img plan` says; sizes in bytes, times in seconds."""

    recipe: str
    data: str
    device: str
    device_memory: float | None
    workers: int
    nodes: int
    workers_per_node: int
    subjects: dict[str, int]
    parameters: dict[str, int]
    buffers: int
    layout: Layout
    chosen: Setting
    settings: list[Setting]
    host_by_node: float
    reading: Data
    times: Times
    checkpoint: CheckpointPlan
    reconstruction: ReconstructionPlan
    nearest: list[str]


@dataclass(frozen=True)
class Where:
    """The cluster: how many workers, how many of them on a node, each with which device."""

    device: PlannedDevice
    workers: int
    workers_per_node: int

    @property
    def nodes(self) -> int:
        """How many nodes that takes."""
        return -(-self.workers // self.workers_per_node)


def make_plan(
    recipe: Recipe, data: Path, subjects: Sequence[str], where: Where, *, measure: bool = False
) -> Plan:
    """The plan of pretraining `recipe` on these subjects; with `measure`, from a few real steps on this machine.

    Raises InputError for a data set without the recipe's feature spaces or subjects, and for workers or a batch that
    cannot be divided.
    """
    if where.workers < 1 or where.workers_per_node < 1:
        raise InputError(
            f"--workers {where.workers} on nodes of {where.workers_per_node}: both must be at least 1"
        )
    if measure:
        check_machine(where.device.cuda)
    config = recipe.pretraining
    check_layout(config, subjects, world=where.workers)
    dataset = Dataset.open(data)
    check_spaces(dataset, recipe)
    voxels = {subject: dataset.inputs(subject) for subject in subjects}
    spaces = target_spaces(recipe, {name: dataset.feature_spaces[name].shape for name in recipe.spaces})
    reading, sampling = read_plan(dataset, recipe, subjects, where)
    memory = Memory(
        recipe,
        meta_decoder(recipe, voxels, spaces),
        config,
        where.device.kind,
        limit=where.device.memory,
        data=reading.held_by_rank,
    )
    measured = measure_rank(recipe, data, subjects, where.workers) if measure else None
    items = sum(len(dataset.samples(subject, "test")) for subject in subjects)
    return assemble(recipe, str(data), voxels, where, memory, reading, sampling, items, measured)


def target_spaces(recipe: Recipe, shapes: Mapping[str, Sequence[int]]) -> dict[str, TargetSpace]:
    """The recipe's spaces in these shapes, around zero: where features lie needs no memory more or less."""
    return {
        name: TargetSpace(
            name, tuple(shapes[name]), np.zeros(shapes[name], np.float32), 1.0, space.directed, space.prior
        )
        for name, space in recipe.spaces.items()
    }


def assemble(
    recipe: Recipe,
    data: str,
    voxels: Mapping[str, int],
    where: Where,
    memory: Memory,
    reading: Data,
    sampling: SamplingPlan,
    items: int,
    measured: Measured | None = None,
) -> Plan:
    """The plan, once data and decoder are known."""
    config, workers = recipe.pretraining, where.workers
    chosen = memory.setting(workers)
    times = _times(memory, where, sampling, measured)
    footprint = None if chosen.refused else memory.footprint(config, workers)
    size = int(footprint.written) if footprint else 0
    checkpoints = max(1, math.ceil(config.steps / config.checkpoint_every))
    picture = None if measured is None else measured.picture
    each_host = chosen.host_peak if where.device.kind == "gpu" else chosen.device_peak
    return Plan(
        recipe=recipe.name,
        data=data,
        device=where.device.name,
        device_memory=where.device.memory,
        workers=workers,
        nodes=where.nodes,
        workers_per_node=where.workers_per_node,
        subjects=dict(voxels),
        parameters=memory.counts.parts,
        buffers=memory.counts.buffers,
        layout=Layout(
            lanes=config.lanes,
            world_sizes=_world_sizes(recipe, list(voxels)),
            global_batch=config.global_batch,
            rows=config.global_batch // (workers * len(voxels)),
            rows_by_rank=config.global_batch // workers,
            micro_batches=config.micro_batches,
        ),
        chosen=chosen,
        settings=memory.stages(workers),
        host_by_node=each_host * min(workers, where.workers_per_node) + reading.fitted_on_rank_0,
        reading=reading,
        times=times,
        checkpoint=CheckpointPlan(
            size=size, kept=size * config.keep, stall=size / COPIED[where.device.kind], count=checkpoints
        ),
        reconstruction=ReconstructionPlan(
            items=items,
            seconds_each=picture,
            seconds=None if picture is None else picture * items / workers,
        ),
        nearest=[]
        if chosen.fits is not False
        else [f"{near.told(chosen)} ({say_bytes(near.device_peak)})" for near in memory.nearest(workers)],
    )


def _world_sizes(recipe: Recipe, subjects: Sequence[str]) -> list[int]:
    fits = []
    for world in range(1, recipe.pretraining.lanes + 1):
        try:
            check_layout(recipe.pretraining, subjects, world=world)
        except InputError:
            continue
        fits.append(world)
    return fits


def read_plan(
    dataset: Dataset, recipe: Recipe, subjects: Sequence[str], where: Where
) -> tuple[Data, SamplingPlan]:
    """What is read by each node, and the sampling plan that says so."""
    config = recipe.pretraining
    tables = {subject: dataset.samples(subject, "train") for subject in subjects}
    held: dict[str, Samples] = {}
    if config.validation:
        tables, held = hold_out(tables, seed=config.seed, fraction=config.validation)
    plan = SamplingPlan(
        tables,
        fingerprint=dataset.fingerprint,
        seed=config.seed,
        global_batch=config.global_batch,
        lanes=config.lanes,
    )
    columns = ("responses", *recipe.spaces)
    by_shard = [
        sum(shard.columns[name].bytes + shard.columns[name].index.bytes for name in columns)
        for shard in dataset.manifest.shards
    ]
    shards, sizes = [], []
    for node in range(where.nodes):
        last = min(where.workers, (node + 1) * where.workers_per_node)
        ranks = range(node * where.workers_per_node, last)
        lanes = [lane for rank in ranks for lane in plan.rank_lanes(rank, where.workers)]
        needed = {
            shard for lane in lanes for subject in subjects for shard in plan.lane_shards(subject, lane)
        }
        shards.append(len(needed))
        sizes.append(sum(by_shard[shard] for shard in needed))
    features = sum(math.prod(dataset.feature_spaces[name].shape) for name in recipe.spaces)
    rows = {name: 4 * len(table) * (features + dataset.inputs(name)) for name, table in held.items()}
    batch = config.global_batch // where.workers // len(subjects)
    ahead = AHEAD * sum(batch * (2 * dataset.inputs(name) + 4 * features) for name in subjects)
    fitted = sum(4 * len(tables[name]) * (features + dataset.inputs(name)) for name in subjects)
    data = Data(
        trials=plan.trials,
        shards=shards,
        bytes_read=sizes,
        cache=sizes if dataset.is_remote else None,
        held_by_rank=sum(rows.values()) + ahead,
        fitted_on_rank_0=fitted,
    )
    return data, plan


def _times(memory: Memory, where: Where, sampling: SamplingPlan, measured: Measured | None) -> Times:
    config, workers = memory.config, where.workers
    flops = memory.trace(config, workers).flops
    counts, own = memory.counts, memory.counts.parameters // (workers if config.zero_stage else 1)
    size = 4 if config.precision == "float32" else 2
    # Weights are read forward and backward, gradients written; Adam reads four numbers of each and writes three.
    moved = 3 * size * counts.parameters + 28 * own
    peak, bandwidth = where.device.peak(config.precision), where.device.bandwidth
    at_peak = step = None
    source = f"{where.device.name} has no published peak in {config.precision}: use --measure"
    if peak is not None and bandwidth is not None:
        at_peak = flops / peak + moved / bandwidth
        step = flops / (OF_COMPUTE * peak) + moved / (OF_BANDWIDTH * bandwidth)
        source = (
            f"published peaks, {OF_COMPUTE:.0%} of compute and {OF_BANDWIDTH:.0%} of bandwidth (assumed), no "
            "communication"
        )
    if measured is not None:
        step, source = measured.step, f"measured on {measured.machine}, one rank alone, no communication"
    # Rings: stages 0 to 2 sum gradients over all ranks, 1 and 2 gather weights; 3 gathers them twice and scatters sums.
    passes = {0: 2, 1: 3, 2: 3, 3: 3}[config.zero_stage]
    wire = passes * size * counts.parameters * (workers - 1) // workers
    return Times(
        source=source,
        flops=flops,
        wire=wire,
        at_peak=at_peak,
        step=step,
        steps=config.steps,
        steps_per_epoch=sampling.steps_per_epoch,
        epoch=None if step is None else step * sampling.steps_per_epoch,
        training=None if step is None else step * config.steps,
    )
