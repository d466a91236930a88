"""Training without Ray: `torchrun --no-python fmri2img pretrain ...` starts the processes, this joins them.

`--no-python` because `python -m` would put the working directory, and so perhaps our `datasets/`, on `sys.path`.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from fmri2img.errors import InputError
from fmri2img.launch.cluster import Place, worker_environment
from fmri2img.trainer.stages import Listener, StageSpec, pretrain

_NEEDED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def started_by_torchrun() -> bool:
    """Whether this process is one of a group that torchrun started."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def pretrain_here(spec: StageSpec, place: Place, *, listener: Listener | None = None) -> Path:
    """Run `trainer.pretrain` as one process of torchrun's group and return the checkpoint. Every process calls it.

    Raises InputError for flags that say where Ray should start workers.
    """
    if place.emulate_nodes or place.address:
        raise InputError(
            "torchrun has started the workers already: leave --emulate-nodes and --cluster out, or start "
            "fmri2img without torchrun"
        )
    for name, value in worker_environment(threads=1).items():
        os.environ[name] = value if name == "PATH" else os.environ.get(name, value)
    with _process_group():
        return pretrain(spec, listener=listener)


@contextmanager
def _process_group() -> Iterator[None]:
    import torch
    import torch.distributed as dist

    missing = [name for name in _NEEDED if name not in os.environ]
    if missing:
        raise InputError(f"torchrun sets {', '.join(missing)}, and here it is not: start this with torchrun")
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if gpu else "gloo", timeout=timedelta(minutes=10))
    try:
        yield
        dist.barrier()
    finally:
        dist.destroy_process_group()
