"""Room for workers on the cluster that this process is connected to: what a worker takes, and how many find a place."""

import socket
import time
from collections.abc import Callable
from typing import Any

from fmri2img.errors import InputError
from fmri2img.launch.cluster import WORKER, Place, worker_environment

PROBE_SECONDS = 10.0
HEAD_SECONDS = 5.0


def has_gpus() -> bool:
    """Whether any node of the cluster has a GPU. This machine may have none, or the only one."""
    import ray

    return ray.cluster_resources().get("GPU", 0) > 0


def worker_resources(*, gpu: bool | None = None) -> dict[str, float]:
    """What one worker takes; a GPU where there are any, unless `gpu` says.

    Clusters that we or our job files start count workers by a resource of their own.
    """
    import ray

    takes = {"CPU": 1.0}
    if ray.cluster_resources().get(WORKER, 0) > 0:
        takes[WORKER] = 1.0
    if has_gpus() if gpu is None else gpu:
        takes["GPU"] = 1.0
    return takes


def actor_options(device: str, *, in_hand: int) -> dict[str, Any]:
    """Ray's options for one worker that computes on `device`, cpu or cuda, and has `in_hand` things to do at a time."""
    takes = worker_resources(gpu=device == "cuda")
    return {
        "num_cpus": takes.pop("CPU"),
        "num_gpus": takes.pop("GPU", 0),
        "resources": takes,
        "max_concurrency": in_hand,
        "runtime_env": {"env_vars": worker_environment(threads=1)},
    }


def check_room(place: Place, device: str) -> None:
    """Raise InputError when a running cluster can never place that many workers. Ray itself would wait for ever."""
    import ray

    has = ray.cluster_resources()
    for name, each in worker_resources(gpu=device == "cuda").items():
        if has.get(name, 0) < each * place.workers:
            raise InputError(
                f"--workers {place.workers}: the cluster has {has.get(name, 0):g} of {name}, each takes {each:g}: use "
                "fewer, or add nodes"
            )


def head_answers() -> bool:
    """Whether the cluster's head takes connections. Ray itself waits for it for a minute, and then ends the process."""
    import ray

    if ray.util.client.ray.is_connected():
        return True  # a Ray client has no such connection of its own
    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=HEAD_SECONDS).close()
    except OSError:
        return False
    return True


def alive_nodes() -> dict[str, str] | None:
    """Node id to address of the nodes that the cluster counts as alive; None when its head does not answer."""
    import ray

    if not head_answers():
        return None
    try:
        return {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    except Exception:  # Ray raises whatever its channel to the head failed with; the next look tells
        return None


def count_slots(*, free: bool = True) -> int:
    """How many workers find a place at once, on nodes as they are; with `free` False, if nobody else were there."""
    import ray

    has = ray.available_resources() if free else ray.cluster_resources()
    return int(min(has.get(name, 0) // each for name, each in worker_resources().items()))


def probe_nodes() -> None:
    """Wait until every node that counts as alive has run something, or has been found dead, or 10 s are over.

    Ray notices a lost node seconds later than its workers' peers do, and would place workers on it until then.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def here() -> None:
        return None

    asked: list[Any] = []
    for node in alive_nodes() or {}:
        strategy = NodeAffinitySchedulingStrategy(node, soft=False)
        asked.append(
            ray.remote(here).options(num_cpus=0, max_retries=0, scheduling_strategy=strategy).remote()
        )
    if asked:
        ray.wait(asked, num_returns=len(asked), timeout=PROBE_SECONDS)


def wait_for_slots(wanted: int, seconds: float, *, tell: Callable[[int], None]) -> int:
    """Wait until `wanted` workers find a place, for as long as `seconds`. Returns how many do.

    `tell(found)` is called once when there is something to wait for.
    """
    end, told = time.monotonic() + seconds, False
    while True:
        found = count_slots()
        if found >= wanted or time.monotonic() >= end:
            return found
        if (
            not told and time.monotonic() > end - seconds + 2
        ):  # the last workers' places are given back in a moment
            tell(found)
            told = True
        time.sleep(0.3)
