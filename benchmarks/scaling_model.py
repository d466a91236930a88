"""How long a step takes on 1 to 512 GPUs with 8 to 1000 subjects: the model of `docs/scaling.md`, as JSON.

    python benchmarks/scaling_model.py [--gpus 1 8 64 512] [--subjects 8 64 256 1000] [--rows-per-subject 16]

Nothing is measured here. A decoder has a head for every subject (voxels x latent) and what subjects share; gradients of
all heads travel at every step, since every micro-batch holds every subject. Time is the sum of arithmetic, memory,
communication and its latency; nothing overlaps, so a machine that reaches the shares assumed is no slower than this.
"""

import argparse
import json
from dataclasses import dataclass
from math import log2
from typing import Any

GB = 1e9
# What a rank sends by rings, in (n - 1) / n of the parameters' bytes. Stages 1 and 2 need no more than 2; DeepSpeed
# 0.19 reduces whole gradients to every rank and then gathers weights.
TIMES = {0: 2, 1: 3, 2: 3, 3: 3}


@dataclass(frozen=True)
class Machine:
    """An H200 in nodes of eight; published figures and the shares of them that are assumed to be reached."""

    flops: float = 989.4e12  # dense bfloat16: data sheet, as in trainer/throughput.py
    memory: float = 141 * GB
    memory_bandwidth: float = 4800 * GB
    node: int = 8
    nvlink: float = 450 * GB  # each way: 900 both ways, nvidia.com/technologies/hopper-architecture
    network: float = 50 * GB  # each way a GPU: one ConnectX-7 of 400 Gb/s, DGX H100/H200 User Guide
    share_flops: float = 0.4
    share_memory: float = 0.8
    share_links: float = 0.8
    latency: float = 10e-6  # of one hop of a tree, assumed


@dataclass(frozen=True)
class Model:
    """A decoder: voxels of a subject, width of the latent, parameters that subjects share, bytes of one in transit."""

    voxels: int
    latent: int
    shared: float
    row_operations: float  # forward and backward of what is shared
    width: int = 2

    def parameters(self, subjects: int) -> float:
        """Of all heads and what is shared."""
        return subjects * self.voxels * self.latent + self.shared

    def operations(self, rows: float) -> float:
        """Of a pass forward and backward: a row goes through its own head and all that is shared."""
        return rows * (6 * self.voxels * self.latent + self.row_operations)


MODELS = {
    # Linear layers alone: six operations a parameter and row.
    "small": Model(15724, 1024, 150e6, 6 * 150e6),
    # Parameters of backbone and prior as published; operations as counted by `pretrain.py` (lab log, 2026-11-20).
    "mindeye2": Model(15724, 4096, 2163e6, 781.3e9),
}


def wire_bytes(parameters: float, width: int, workers: int, stage: int) -> float:
    """What one rank sends for a step; times `workers`, what all send together."""
    return TIMES[stage] * (workers - 1) / workers * width * parameters


def state_bytes(parameters: float, width: int, workers: int, stage: int) -> float:
    """Of weights, gradients, float32 weights and moments of a rank, activations left out (docs/plan.md)."""
    weights, gradients, rest = width * parameters, width * parameters, 12 * parameters
    return (
        (weights / workers if stage == 3 else weights)
        + (gradients / workers if stage >= 2 else gradients)
        + (rest / workers if stage >= 1 else rest)
    )


def step_seconds(
    machine: Machine, model: Model, workers: int, subjects: int, rows: float, stage: int
) -> dict[str, float]:
    """Seconds of the parts of a step of `rows` rows over all workers, each a rank's."""
    parameters = model.parameters(subjects)
    # Across nodes every GPU of a node has a ring of its own through its own adapter, each with its part of the bytes.
    between = min(machine.nvlink, machine.node * machine.network)
    speed = (machine.nvlink if workers <= machine.node else between) * machine.share_links
    hops = TIMES[stage] * log2(workers)
    share = workers if stage else 1
    moved = 3 * model.width * parameters + 28 * parameters / share
    return {
        "arithmetic": model.operations(rows / workers) / (machine.flops * machine.share_flops),
        "memory": moved / (machine.memory_bandwidth * machine.share_memory),
        "communication": wire_bytes(parameters, model.width, workers, stage) / speed,
        "latency": hops * machine.latency,
    }


def least_stage(machine: Machine, model: Model, workers: int, subjects: int) -> int | None:
    """The lowest stage (0 has no bfloat16) whose state fits into four fifths of the memory."""
    for stage in (1, 2, 3):
        if state_bytes(model.parameters(subjects), model.width, workers, stage) <= 0.8 * machine.memory:
            return stage
    return None


def table(model: Model, gpus: list[int], subjects: list[int], rows_per_subject: int) -> list[dict[str, Any]]:
    """One line for each pair. Rows are at least a row of each subject on each worker, as the plan of batches asks."""
    machine, lines = Machine(), []
    for people in subjects:
        for workers in gpus:
            rows = people * max(rows_per_subject, workers)
            stage = least_stage(machine, model, workers, people)
            line = {"subjects": people, "gpus": workers, "rows": rows, "stage": stage}
            if stage is not None:
                parts = step_seconds(machine, model, workers, people, rows, stage)
                whole = sum(parts.values())
                line |= {
                    "parameters": model.parameters(people),
                    "milliseconds_a_step": float(f"{1e3 * whole:.3g}"),
                    "samples_per_second": float(f"{rows / whole:.3g}"),
                    "shares": {name: round(part / whole, 3) for name, part in parts.items()},
                }
            lines.append(line)
    return lines


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 64, 512])
    parser.add_argument("--subjects", type=int, nargs="+", default=[8, 64, 256, 1000])
    parser.add_argument("--rows-per-subject", type=int, default=16)
    asked = parser.parse_args()
    tables = {n: table(m, asked.gpus, asked.subjects, asked.rows_per_subject) for n, m in MODELS.items()}
    print(json.dumps({"rows_per_subject": asked.rows_per_subject, **tables}, indent=1))


if __name__ == "__main__":
    main()
