"""The reconstruction job: units over Ray workers, each loading its models once. Alone, the same in this process."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fmri2img import checkpoints_schema as schema
from fmri2img.datasets import Dataset
from fmri2img.datasets.remote import absolute
from fmri2img.errors import DamageError, Fmri2imgError, InputError
from fmri2img.files import write_json
from fmri2img.launch.cluster import WORKER, Place, cluster, leave_source_tree, worker_environment
from fmri2img.launch.folders import check_folder
from fmri2img.launch.units import ReconstructionJob, Reconstructor, items_of, merge, unit_problem, units_of

Progress = Callable[[int, int], None]


def launch_reconstruction(
    job: ReconstructionJob,
    checkpoint: Path,
    data: Path,
    out: Path,
    *,
    place: Place | None,
    progress: Progress,
) -> Path:
    """Make the units that are not there yet and merge them; returns the manifest's path.

    `place` None works in this process. Raises InputError when `out` holds another job, Fmri2imgError when units failed,
    on two workers each where there are workers, after all others were made.
    """
    checkpoint, data, out = schema.resolve(checkpoint).path.resolve(), absolute(data), out.resolve()
    dataset = Dataset.open(data)
    items = items_of(job, dataset)
    _claim(out, job)
    count = units_of(job, items)
    parts = [items[n * job.batch : (n + 1) * job.batch] for n in range(count)]
    missing = [n for n in range(count) if unit_problem(out, job, n, parts[n])]
    done = sum(len(parts[n]) for n in range(count) if n not in set(missing))
    progress(done, len(items))
    told = _Told(progress, done, len(items))
    failed: dict[int, str] = {}
    if missing and place is None:
        failed = _alone(job, checkpoint, data, out, missing, told)
    elif missing:
        assert place is not None
        with cluster(place):
            failed = _spread(job, checkpoint, data, out, missing, place, told)
    if failed:
        number, text = min(failed.items())
        raise Fmri2imgError(
            f"{len(failed)} of {len(missing)} units failed, the first is unit {number}: {text} "
            "The others are done, the same command tries these again"
        )
    return merge(out, job, dataset)


class _Told:
    def __init__(self, progress: Progress, done: int, total: int) -> None:
        self.progress, self.done, self.total = progress, done, total

    def add(self, count: int) -> None:
        self.done += count
        self.progress(self.done, self.total)


def _claim(out: Path, job: ReconstructionJob) -> None:
    """Write the job's identity into a new folder, or check that the folder is this job's."""
    check_folder(out, ("job.json",), what="reconstruction")
    path = out / "job.json"
    if path.exists():
        try:
            same = ReconstructionJob.model_validate_json(path.read_bytes()) == job
        except ValidationError as error:
            raise DamageError(f"{path} is damaged: remove {out} and reconstruct again") from error
        if not same:
            raise InputError(f"{out} holds another reconstruction (see {path}): give another --out")
        return
    (out / "units").mkdir(parents=True, exist_ok=True)
    write_json(path, job.model_dump(mode="json"))


def _alone(
    job: ReconstructionJob, checkpoint: Path, data: Path, out: Path, missing: list[int], told: _Told
) -> dict[int, str]:
    """Make units in this process. Returns why units failed."""
    worker = Reconstructor(job, checkpoint, data, out)
    failed: dict[int, str] = {}
    for number in missing:
        try:
            told.add(worker.make(number))
        except DamageError as error:
            failed[number] = str(error)
    return failed


class _Remote:
    """A `Reconstructor` in a Ray worker."""

    def __init__(self, job: dict[str, Any], checkpoint: str, data: str, out: str) -> None:
        leave_source_tree()
        settings = ReconstructionJob.model_validate(job)
        self.inner = Reconstructor(settings, Path(checkpoint), Path(data), Path(out))

    def make(self, number: int) -> int:
        return self.inner.make(number)


def _spread(
    job: ReconstructionJob,
    checkpoint: Path,
    data: Path,
    out: Path,
    missing: list[int],
    place: Place,
    told: _Told,
) -> dict[int, str]:
    """Hand units to whoever is free. A unit that fails is tried once more on a new worker.

    Returns why units failed twice.
    """
    import ray
    import torch

    remote = ray.remote(_Remote).options(
        num_cpus=1,
        num_gpus=1 if torch.cuda.is_available() else 0,
        resources={WORKER: 1},
        runtime_env={"env_vars": worker_environment(threads=1)},
    )
    plain = job.model_dump(mode="json")

    def start() -> Any:
        return remote.remote(plain, str(checkpoint), str(data), str(out))

    waiting = [(number, 0) for number in missing]
    running: dict[Any, tuple[Any, int, int]] = {}
    failed: dict[int, str] = {}
    idle = [start() for _ in range(min(place.workers, len(missing)))]
    while waiting or running:
        while waiting and idle:
            number, tries = waiting.pop(0)
            worker = idle.pop()
            running[worker.make.remote(number)] = (worker, number, tries)
        (ready,), _ = ray.wait(list(running), num_returns=1)
        worker, number, tries = running.pop(ready)
        try:
            told.add(ray.get(ready))
            idle.append(worker)
        except ray.exceptions.RayError as error:
            ray.kill(worker)
            idle.append(start())
            cause = getattr(error, "cause", None)
            text = str(cause if cause is not None else error).strip().splitlines()[-1]
            if tries == 0:
                waiting.append((number, 1))
            else:
                failed[number] = text
    return failed
