"""The reconstruction job: what is there is found, what is missing is made by Ray workers or here, all is merged."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fmri2img import checkpoints_schema as schema
from fmri2img.console import output
from fmri2img.datasets import Dataset
from fmri2img.datasets.remote import absolute
from fmri2img.errors import DamageError, Fmri2imgError, InputError, StoppedError
from fmri2img.files import alone, write_json
from fmri2img.launch.cluster import Place, cluster
from fmri2img.launch.devices import Devices, only
from fmri2img.launch.doctor import preflight
from fmri2img.launch.folders import check_folder
from fmri2img.launch.items import ReconstructionJob, Unit, units_of
from fmri2img.launch.made import merge, one_generator
from fmri2img.launch.reconstructor import Reconstructor, stream
from fmri2img.launch.slots import check_room
from fmri2img.launch.units import clear_stale, read_sidecar, unit_problem
from fmri2img.launch.workers import Pool, Task, check_hope, start_workers

Progress = Callable[[int, int], None]
JOB = "job.json"


def launch_reconstruction(
    job: ReconstructionJob,
    checkpoint: Path,
    data: Path,
    out: Path,
    *,
    place: Place | None,
    progress: Progress,
    devices: Devices | None = None,
    threads: int = 1,
    resume: bool = True,
    verify: bool = False,
) -> Path:
    """Make the units that are not there yet and merge them; returns the manifest's path.

    `place` None works in this process. `threads` write files beside each worker's computing, 0 overlaps nothing. With
    `verify`, every byte that is there is read again and what changed is made again. Raises InputError when `out` holds
    another job or another process works on it, StoppedError when the disk takes no more, and Fmri2imgError when units
    failed, by two workers each where there are workers, after all others were made.
    """
    checkpoint, data, out = schema.resolve(checkpoint).path.resolve(), absolute(data), out.resolve()
    dataset = Dataset.open(data)
    check_folder(out, (JOB,), what="reconstruction")
    out.mkdir(parents=True, exist_ok=True)
    with alone(out, f"another process reconstructs into {out}: wait for it, or give another --out"):
        _claim(out, job, resume=resume)
        clear_stale(out)
        units = units_of(job, dataset)
        missing = _find(out, job, units, verify=verify)
        told = _Told(progress, units, missing)
        told.show()
        task = Task(job, checkpoint, data, out, threads)
        failed: dict[int, Exception] = {}
        if missing and place is None:
            failed = _here(task, devices or Devices(job.device), missing, told)
        elif missing:
            assert place is not None
            with only(devices or Devices(job.device)), cluster(place):
                check_room(place, job.device)
                if place.preflight:
                    preflight(address=place.address, data=data, out=out)
                expect = _Weights(out, units, missing)
                pool = Pool(
                    start_workers(task),
                    place.workers,
                    in_hand=task.in_hand,
                    told=told.add,
                    loaded=expect.check,
                )
                failed = pool.run(missing)
        if failed:
            raise _told_failures(failed, len(missing))
        clear_stale(out)  # of workers that died
        return merge(out, job, dataset)


def _told_failures(failed: dict[int, Exception], tried: int) -> Fmri2imgError:
    lines = {}
    for number, error in sorted(failed.items()):
        text = " ".join(str(error).split()) or type(error).__name__
        if not isinstance(error, Fmri2imgError):
            text = f"{type(error).__name__}: {text}"
        lines[number] = text
        output().print(f"  unit {number} failed: {text}", markup=False)
    number, text = min(lines.items())
    ours = Fmri2imgError(
        f"{len(failed)} of {tried} units failed, the first is unit {number}: {text} "
        "The others are done, the same command tries these again"
    )
    ours.__cause__ = failed[number]
    return ours


class _Told:
    """Progress, in pictures."""

    def __init__(self, progress: Progress, units: Sequence[Unit], missing: Sequence[int]) -> None:
        self.progress, self.sizes = progress, {unit.number: len(unit.items) for unit in units}
        self.total = sum(self.sizes.values())
        self.done = self.total - sum(self.sizes[number] for number in missing)

    def show(self) -> None:
        self.progress(self.done, self.total)

    def add(self, number: int) -> None:
        self.done += self.sizes[number]
        self.show()


class _Weights:
    """Checks, when a worker has loaded its generator, that units that are there were made with the same weights."""

    def __init__(self, out: Path, units: Sequence[Unit], missing: Sequence[int]) -> None:
        there = next((unit for unit in units if unit.number not in set(missing)), None)
        self.out, self.known = (
            out,
            [] if there is None else [read_sidecar(out, there)["made_with"]["weights"]],
        )

    def check(self, made_with: dict[str, Any]) -> None:
        self.known = [*self.known[:1], made_with["weights"]]
        one_generator(self.out, self.known)


def _claim(out: Path, job: ReconstructionJob, *, resume: bool) -> None:
    """Write the job's identity into a new folder, or check that the folder is this job's."""
    path = out / JOB
    if path.exists():
        if not resume:
            raise InputError(f"{out} holds a reconstruction, and --no-resume begins anew: give another --out")
        try:
            was = ReconstructionJob.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise DamageError(f"{path} is damaged: remove {out} and reconstruct again") from error
        if was != job:
            old, new = was.model_dump(mode="json"), job.model_dump(mode="json")
            name = next(name for name in new if old[name] != new[name])
            raise InputError(
                f"{out} holds another reconstruction ({name} was {old[name]}, is {new[name]}): give another --out"
            )
        return
    try:
        (out / "units").mkdir(exist_ok=True)
        write_json(path, job.model_dump(mode="json"))
    except OSError as error:
        raise StoppedError(
            f"{path} cannot be written: {error.strerror or error}. Mend that and run the same command"
        ) from error


def _find(out: Path, job: ReconstructionJob, units: Sequence[Unit], *, verify: bool) -> list[int]:
    """Numbers of the units to make, after a word on what was found."""
    with ThreadPoolExecutor(4) as pool:
        problems = list(pool.map(lambda unit: unit_problem(out, job, unit, deep=verify), units))
    console, missing = output(), [n for n, problem in enumerate(problems) if problem is not None]
    for number in missing:
        if (out / "units" / units[number].name).exists():
            console.print(f"  {units[number].name} is made again: {problems[number]}", markup=False)
    if len(missing) < len(units) or verify:
        how = "whole, every byte read" if verify else "done"
        console.print(f"  {len(units) - len(missing)} of {len(units)} units are {how}", markup=False)
    return missing


def _here(task: Task, devices: Devices, missing: list[int], told: _Told) -> dict[int, Exception]:
    """Make units in this process. Returns why units failed."""
    worker = Reconstructor(task.job, task.checkpoint, task.data, task.out, device=devices.first)
    _Weights(task.out, worker.units, missing).check(worker.made_with)
    failed: dict[int, Exception] = {}
    for number, error in stream(worker, missing, threads=task.threads):
        if error is None:
            told.add(number)
            continue
        failed[number] = error
        check_hope(failed, made=number != missing[len(failed) - 1])
    return failed
