"""Examine this node or a whole cluster, and the quick part of it before a job begins."""

import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fmri2img import checkpoints_schema as schema
from fmri2img.datasets import Dataset
from fmri2img.datasets.remote import address_of
from fmri2img.errors import DamageError, Fmri2imgError, InputError
from fmri2img.launch.cluster import Place, cluster
from fmri2img.launch.doctor.collectives import SIZES, measure_nodes
from fmri2img.launch.doctor.facts import gather_facts
from fmri2img.launch.doctor.findings import Finding, failed, judge_cluster, judge_node
from fmri2img.launch.slots import alive_nodes, has_gpus

ANSWER_SECONDS = 60.0


def examine(
    *, address: str | None, data: Path | None, checkpoint: Path | None, out: Path | None = None
) -> list[Finding]:
    """Everything there is to find about this node, or about all nodes of the cluster at `address`."""
    folders = _folders(data, out)
    found = _inputs(data, checkpoint)
    if address is None:
        facts = gather_facts(folders, measure=True)
        return [*judge_cluster({"here": facts}, {}), *judge_node("here", facts), *found]
    with cluster(Place(address=address)):
        found = [*_examine_nodes(folders, measure=True, out=None), *found]
        return [*found, *_collectives()]


def preflight(*, address: str | None, data: Path, out: Path) -> None:
    """The checks that take a moment, before a job. Raises Fmri2imgError with the first that fails.

    With `address` this process is connected to that cluster, and every node must see `out`.
    """
    folders = _folders(data, out)
    if address is None:
        found = judge_node("this node", gather_facts(folders, measure=False))
    else:
        found = _examine_nodes(folders, measure=False, out=out)
    bad = failed(found)
    if bad:
        first = bad[0]
        more = f" ({len(bad) - 1} more: see `fmri2img doctor`)" if len(bad) > 1 else ""
        raise Fmri2imgError(
            f"preflight: {first.node}: {first.check}: {first.value}: {first.way_out}{more}; --skip-preflight starts "
            "the job all the same"
        )


def _folders(data: Path | None, out: Path | None) -> dict[str, str]:
    folders = {"cache": os.environ.get("FMRI2IMG_CACHE", str(Path.home() / ".cache"))}
    if data is not None and address_of(data) is None:
        folders["data"] = str(data.absolute())
    if out is not None:
        folders["run"] = str(out.absolute())
    return folders


def _inputs(data: Path | None, checkpoint: Path | None) -> list[Finding]:
    """Whether the data set opens and the checkpoint verifies, from this node."""
    tests: list[tuple[str, Callable[[], str]]] = []
    if data is not None:
        tests.append(("data set", lambda: _opened(data)))
    if checkpoint is not None:
        tests.append(("checkpoint", lambda: f"{schema.resolve(checkpoint).path} verifies"))
    found = []
    for name, test in tests:
        try:
            found.append(Finding(node="here", check=name, state="ok", value=test()))
        except (InputError, DamageError) as error:
            found.append(
                Finding(
                    node="here", check=name, state="fail", value=str(error), way_out="see the message above"
                )
            )
    return found


def _opened(data: Path) -> str:
    dataset = Dataset.open(data)
    spaces = ", ".join(dataset.feature_spaces) or "none"
    return f"{dataset.path}: {len(dataset.subjects)} subjects, features {spaces}"


def _run_on(node: str, function: Callable[..., Any], arguments: tuple[Any, ...], *, gpus: int = 0) -> Any:
    """A Ray reference. Without a GPU of its own a task still sees them all, as `cluster` sets it."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    strategy = NodeAffinitySchedulingStrategy(node, soft=False)
    remote = ray.remote(function)
    return remote.options(num_cpus=0, num_gpus=gpus, max_retries=0, scheduling_strategy=strategy).remote(
        *arguments
    )


def _facts(folders: dict[str, str], measure: bool, mark: str | None) -> dict[str, Any]:
    return gather_facts(folders, measure=measure, mark=mark)


def _examine_nodes(folders: dict[str, str], *, measure: bool, out: Path | None) -> list[Finding]:
    import ray

    nodes = alive_nodes() or {}
    mark = None if out is None else out / f".preflight-{uuid.uuid4().hex[:8]}"
    if mark is not None:
        mark.touch()
    try:
        asked = {
            address: _run_on(node, _facts, (folders, measure, None if mark is None else str(mark)))
            for node, address in nodes.items()
        }
        found, facts, skews = [], {}, {}
        for address, reference in asked.items():
            try:
                facts[address] = ray.get(reference, timeout=ANSWER_SECONDS)
            except ray.exceptions.RayError as error:
                found.append(_silent(address, error))
    finally:
        if mark is not None:
            mark.unlink(missing_ok=True)
    if measure:
        skews = {address: _skew(node) for node, address in nodes.items() if address in facts}
    for address, one in facts.items():
        found += judge_node(address, one)
    return [*judge_cluster(facts, skews), *found] if facts else found


def _silent(address: str, error: Exception) -> Finding:
    return Finding(
        node=address,
        check="answers",
        state="fail",
        value=f"no ({type(error).__name__})",
        way_out="look at the node and its Ray logs, or take it out of the cluster",
    )


def _skew(node: str) -> float:
    """Seconds that a node's clock is ahead of this one's, to half the time that asking takes."""
    import ray

    ray.get(_run_on(node, time.time, ()))  # a process is there now
    begun = time.time()
    theirs = ray.get(_run_on(node, time.time, ()))
    return float(theirs) - (begun + time.time()) / 2


def _collectives() -> list[Finding]:
    import ray

    nodes = alive_nodes() or {}
    if len(nodes) < 2:
        return [Finding(node="all", check="collectives", state="ok", value="one node, nothing to measure")]
    gpu = has_gpus()
    backend = "nccl" if gpu else "gloo"
    try:
        taken = measure_nodes(nodes, _run_on, gpu=gpu)
    except ray.exceptions.RayError as error:
        last = [line for line in str(error).splitlines() if line.strip()][-1].strip()
        way_out = "open the ports between nodes, and set GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME to their interface"
        return [Finding(node="all", check=backend, state="fail", value=last[:200], way_out=way_out)]
    count = len(nodes)
    small, large = taken["1 KB"], taken["64 MB"]
    speed = 2 * (count - 1) / count * SIZES["64 MB"] / large
    value = f"all-reduce of 1 KB in {small * 1e3:.2f} ms; of 64 MB in {large * 1e3:.0f} ms, {speed / 1e9:.2f} GB/s"
    return [Finding(node="all", check=f"{backend} of {count} nodes", state="ok", value=value)]
