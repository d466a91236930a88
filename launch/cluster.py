"""Where a job runs: this machine, several Ray nodes emulated on it, or a cluster that is already there."""

import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmri2img.errors import Fmri2imgError, InputError

WORKER = "fmri2img_worker"
OBJECT_STORE = 200_000_000
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Place:
    """`emulate_nodes` starts that many Ray nodes here; `address` joins a cluster; with neither, one node here."""

    workers: int = 1
    emulate_nodes: int = 0
    address: str | None = None
    # Seconds to wait for nodes that have not joined yet, or were lost.
    patience: float = 60.0
    # Whether to look at nodes before the job begins.
    preflight: bool = True
    # Seconds that workers have for a last checkpoint when the job is told to stop.
    grace: float = 25.0
    # The fewest workers that a run may shrink to; None for `workers`.
    least: int | None = None
    # Seconds without anything new from the workers after which they count as hung.
    hang_after: float = 1800.0

    def __post_init__(self) -> None:
        if self.emulate_nodes and self.address:
            raise InputError(
                "--emulate-nodes starts its own cluster and --cluster joins one: give one of them"
            )
        if self.workers < 1:
            raise InputError(f"--workers {self.workers}: a job needs at least 1")
        if self.least is not None and not 1 <= self.least <= self.workers:
            raise InputError(
                f"--workers {self.least}:{self.workers}: the fewest must be 1 or more and no more than the most"
            )
        if self.emulate_nodes < 0:
            raise InputError(
                f"--emulate-nodes {self.emulate_nodes}: start at least 1 node, or leave the flag out"
            )
        if self.emulate_nodes and self.workers % self.emulate_nodes:
            raise InputError(
                f"--workers {self.workers} on --emulate-nodes {self.emulate_nodes}: every node gets as many workers, "
                f"so use a multiple of {self.emulate_nodes}"
            )


@contextmanager
def cluster(place: Place) -> Iterator[None]:
    """Connect to Ray at the place and, when it was started for this job, stop it at the end with all it left on disk.

    What is started here listens on the loopback address only. Token authentication is as Ray has it.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")
    # On a busy machine Ray's processes take long to come up; by its own settings it gives up after 30 and 60 s.
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "120")
    if place.address is None:
        # The name is historic: 0 makes Ray take the loopback address for its own, as it does on those systems.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    import ray

    if place.address is not None:
        _check_answers(place.address)
    if ray.is_initialized():
        yield
        return
    if place.address is not None:
        with _own_signals():
            _join(place.address)
        try:
            yield
        finally:
            ray.shutdown()
        return
    with _temporary() as folder:
        with _own_signals():
            stop = _emulate(place, folder) if place.emulate_nodes else _single(place, folder)
        try:
            yield
        finally:
            stop()


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep the handler of SIGTERM: Ray's own ends this process with nothing said and nothing of ours cleaned up."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}


def _check_answers(address: str) -> None:
    """Raise InputError when nothing listens at host:port. Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except (OSError, OverflowError) as error:
            raise _no_answer(address, error) from error


def _join(address: str) -> None:
    import ray

    try:
        ray.init(address=address, **QUIET)
    except (OSError, ValueError, RuntimeError) as error:
        raise _no_answer(address, error) from error


def _no_answer(address: str, error: Exception) -> InputError:
    return InputError(
        f"--cluster {address}: no Ray cluster answers there ({type(error).__name__}): start one with "
        "`ray start --head`, or leave the flag out to work on this machine"
    )


@contextmanager
def _temporary() -> Iterator[str]:
    """A folder for Ray's sockets and logs. Its path is short, because a socket's path may have 107 bytes."""
    short = tempfile.gettempdir() if len(tempfile.gettempdir()) < 24 else "/tmp"
    folder = tempfile.mkdtemp(prefix="fmri2img-", dir=short)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _single(place: Place, folder: str) -> Callable[[], None]:
    return _head(folder, max(os.cpu_count() or 1, place.workers + 1), {WORKER: float(place.workers)})


def _emulate(place: Place, folder: str) -> Callable[[], None]:
    """A head without workers and `emulate_nodes` nodes with an equal share of them, all on this machine."""
    import ray
    from ray.cluster_utils import Cluster

    stop_head = _head(folder, 1, {})
    nodes = Cluster()
    nodes.head_node = ray._private.worker.global_worker.node
    nodes.redis_address = None
    each = place.workers // place.emulate_nodes

    def stop() -> None:
        for node in list(nodes.worker_nodes):
            nodes.remove_node(node)
        stop_head()

    try:
        for _ in range(place.emulate_nodes):
            nodes.add_node(
                num_cpus=each,
                resources={WORKER: float(each)},
                include_dashboard=False,
                node_ip_address=LOOPBACK,
                temp_dir=folder,
                object_store_memory=OBJECT_STORE,
            )
    except BaseException:
        stop()
        raise
    return stop


def _head(folder: str, cpus: int, resources: dict[str, float]) -> Callable[[], None]:
    import ray

    try:
        ray.init(
            num_cpus=cpus,
            resources=resources,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE,
            _node_ip_address=LOOPBACK,
            _temp_dir=folder,
            **QUIET,
        )
    except Exception as error:  # Ray raises plain exceptions when its processes do not come up
        raise Fmri2imgError(
            f"Ray did not start on this machine ({' '.join(str(error).split())[:200]}): free memory and processors, "
            "then run the same command again"
        ) from error
    return ray.shutdown


def worker_environment(threads: int, *, gpu: bool | None = None) -> dict[str, str]:
    """Environment that must be there before a worker imports torch or deepspeed.

    `gpu` is whether workers have one, where that may differ from this machine.
    """
    import torch

    wanted = {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    if not (torch.cuda.is_available() if gpu is None else gpu):
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
