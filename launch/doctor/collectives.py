"""How fast nodes reduce together: one process a node, gloo or nccl, 1 KB for latency, 64 MB for bandwidth."""

import socket
import time
from datetime import timedelta
from typing import Any

SIZES = {"1 KB": 1 << 10, "64 MB": 64 << 20}
REPEATS = {"1 KB": 20, "64 MB": 3}
SECONDS = 120


def free_port() -> int:
    """A port of this node that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def measure(rank: int, world: int, address: str, port: int, backend: str) -> dict[str, float]:
    """Median seconds of one all-reduce of each size. Every process of the group calls it."""
    import torch
    import torch.distributed as dist

    store = f"tcp://{address}:{port}"
    dist.init_process_group(
        backend, init_method=store, rank=rank, world_size=world, timeout=timedelta(seconds=SECONDS)
    )
    device = torch.device("cuda" if backend == "nccl" else "cpu")
    try:
        taken = {}
        for name, size in SIZES.items():
            values = torch.ones(size // 4, device=device)
            dist.all_reduce(values)
            seconds = []
            for _ in range(REPEATS[name]):
                begun = time.perf_counter()
                dist.all_reduce(values)
                if backend == "nccl":
                    torch.cuda.synchronize()
                seconds.append(time.perf_counter() - begun)
            taken[name] = sorted(seconds)[len(seconds) // 2]
        dist.barrier()
        return taken
    finally:
        dist.destroy_process_group()


def measure_nodes(nodes: dict[str, str], run_on: Any, *, gpu: bool) -> dict[str, float]:
    """`measure` on every node at once; `run_on(node, function, arguments)` is a Ray reference. The slowest counts."""
    import ray

    first = next(iter(nodes))
    port = ray.get(run_on(first, free_port, ()))
    backend = "nccl" if gpu else "gloo"
    references = [
        run_on(node, measure, (rank, len(nodes), nodes[first], port, backend))
        for rank, node in enumerate(nodes)
    ]
    taken = ray.get(references, timeout=2 * SECONDS)
    return {name: max(one[name] for one in taken) for name in SIZES}
