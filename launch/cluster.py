"""Where a job runs: this machine, several Ray nodes emulated on it, or a cluster that is already there."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmri2img.errors import InputError

WORKER = "fmri2img_worker"
OBJECT_STORE = 200_000_000


@dataclass(frozen=True)
class Place:
    """`emulate_nodes` starts that many Ray nodes here; `address` joins a cluster; with neither, one node here."""

    workers: int = 1
    emulate_nodes: int = 0
    address: str | None = None

    def __post_init__(self) -> None:
        if self.emulate_nodes and self.address:
            raise InputError(
                "--emulate-nodes starts its own cluster and --cluster joins one: give one of them"
            )
        if self.workers < 1:
            raise InputError(f"--workers {self.workers}: a job needs at least 1")
        if self.emulate_nodes and self.workers % self.emulate_nodes:
            raise InputError(
                f"--workers {self.workers} on --emulate-nodes {self.emulate_nodes}: every node gets as many workers, "
                f"so use a multiple of {self.emulate_nodes}"
            )


@contextmanager
def cluster(place: Place) -> Iterator[None]:
    """Connect to Ray at the place and, when it was started for this job, stop it at the end."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")
    import ray

    if ray.is_initialized():
        yield
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if place.address is not None:
        ray.init(address=place.address, **quiet)
        stop = ray.shutdown
    elif place.emulate_nodes:
        stop = _emulate(place, quiet)
    else:
        ray.init(
            num_cpus=max(os.cpu_count() or 1, place.workers + 1),
            resources={WORKER: float(place.workers)},
            include_dashboard=False,
            object_store_memory=OBJECT_STORE,
            **quiet,
        )
        stop = ray.shutdown
    try:
        yield
    finally:
        stop()


def _emulate(place: Place, quiet: dict[str, Any]) -> Any:
    """A head without workers and `emulate_nodes` nodes with an equal share of them, all on this machine."""
    import ray
    from ray.cluster_utils import Cluster

    node = {"include_dashboard": False, "object_store_memory": OBJECT_STORE}
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **node})
    each = place.workers // place.emulate_nodes
    for _ in range(place.emulate_nodes):
        nodes.add_node(num_cpus=each, resources={WORKER: float(each)}, object_store_memory=OBJECT_STORE)
    ray.init(address=nodes.address, **quiet)

    def stop() -> None:
        ray.shutdown()
        nodes.shutdown()

    return stop


def worker_environment(threads: int) -> dict[str, str]:
    """Environment that must be there before a worker imports torch or deepspeed."""
    import torch

    wanted = {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    if not torch.cuda.is_available():
        wanted["DS_ACCELERATOR"] = "cpu"
    # DeepSpeed compiles its CPU collectives with ninja, which pip puts beside the interpreter.
    wanted["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return wanted


def leave_source_tree() -> None:
    """Take this project's source folder off `sys.path`, where Ray puts the driver's working directory.

    Our `datasets/` folder there would make transformers believe that Hugging Face datasets is installed.
    """
    ours = [p for p in sys.path if (Path(p or ".") / "checkpoints_schema" / "__init__.py").exists()]
    for path in ours:
        if (Path(path or ".") / "datasets" / "source.py").exists():
            sys.path.remove(path)
