"""Units over Ray workers: whoever is free gets the next one, what fails is tried elsewhere, who dies is replaced.

A worker has a few units in hand, so that it reads the next and writes the last while it computes one. When it dies,
nobody knows which of them it died of: they are then tried one at a time, and only what a worker dies of while it has
nothing else in hand is held against a unit.
"""

from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fmri2img.errors import Fmri2imgError, StoppedError
from fmri2img.launch.cluster import leave_source_tree
from fmri2img.launch.items import ReconstructionJob
from fmri2img.launch.reconstructor import Reconstructor
from fmri2img.launch.slots import actor_options
from fmri2img.trainer import stopping

TRIES = 2  # of a unit that fails, each by another worker
DEATHS = 3  # of workers that had one unit in hand, or were loading models in a row
HOPELESS = 8  # units that failed before any was made
LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class Task:
    """What every worker needs to know."""

    job: ReconstructionJob
    checkpoint: Path
    data: Path
    out: Path
    threads: int

    @property
    def in_hand(self) -> int:
        """Units that a worker has at a time: one to read, one to compute, one for each thread that writes."""
        return self.threads + 2 if self.threads else 1


class RemoteReconstructor:
    """A `Reconstructor` in a Ray worker. `make` runs in as many threads as units are in hand."""

    def __init__(self, job: dict[str, Any], checkpoint: str, data: str, out: str) -> None:
        leave_source_tree()
        self.job = ReconstructionJob.model_validate(job)
        self.places = Path(checkpoint), Path(data), Path(out)
        self.inner: Reconstructor | None = None

    def load(self) -> dict[str, Any]:
        """Load decoder and generator; what its units will say they were made with."""
        self.inner = Reconstructor(self.job, *self.places)
        return self.inner.made_with

    def make(self, number: int) -> int:
        """Make one unit."""
        assert self.inner is not None
        return self.inner.make(number)


@dataclass(eq=False)
class _Worker:
    actor: Any
    loading: Any  # the reference of `load`, None once it is done
    running: dict[Any, int] = field(default_factory=dict)
    retired: bool = False  # gets no more units, and is replaced when those in hand are done


def start_workers(task: Task) -> Callable[[], Any]:
    """A function that starts one worker, which takes one GPU where the job computes on GPUs."""
    import ray

    remote = ray.remote(RemoteReconstructor).options(**actor_options(task.job.device, in_hand=task.in_hand))
    job = task.job.model_dump(mode="json")
    return lambda: remote.remote(job, str(task.checkpoint), str(task.data), str(task.out))


class Pool:
    """Makes units by `count` workers. `told(number)` is called for each that is made, `loaded(made_with)` a worker.

    `answered(number, result)` is given what `make` returned, for jobs that need it.
    """

    def __init__(
        self,
        start: Callable[[], Any],
        count: int,
        *,
        in_hand: int,
        told: Callable[[int], None],
        loaded: Callable[[dict[str, Any]], None],
        answered: Callable[[int, Any], None] | None = None,
    ) -> None:
        self.start, self.count, self.in_hand, self.told, self.loaded = start, count, in_hand, told, loaded
        self.answered = answered
        self.workers: list[_Worker] = []
        self.waiting: deque[int] = deque()
        self.suspects: deque[int] = deque()
        self.tried: dict[int, list[_Worker]] = {}
        self.deaths: Counter[int] = Counter()
        self.failed: dict[int, Exception] = {}
        self.made = self.dead_loading = 0

    def run(self, numbers: Sequence[int]) -> dict[int, Exception]:
        """Make these units; returns why units failed. Raises our own error when no unit could be made.

        SIGTERM ends it between two of Ray's calls: Ray itself would wait to the end of the call, and then fail at it.
        """
        import ray

        self.waiting.extend(numbers)
        try:
            with stopping.listening():
                for _ in range(min(self.count, len(numbers))):
                    self._hire()
                while self.waiting or self.suspects or any(w.running for w in self.workers):
                    self._go_on()
        finally:
            for worker in self.workers:
                ray.kill(worker.actor)
        return self.failed

    def _go_on(self) -> None:
        import ray

        for worker in self.workers:
            self._hand_out(worker)
        references = {ref: w for w in self.workers for ref in (w.loading, *w.running) if ref is not None}
        ready, _ = ray.wait(list(references), num_returns=1, timeout=LOOK_SECONDS)
        if stopping.asked():
            raise StoppedError("stopped by SIGTERM: the same command goes on from what is done")
        for reference in ready:
            self._settle(references[reference], reference)

    def _hire(self) -> None:
        actor = self.start()
        self.workers.append(_Worker(actor, actor.load.remote()))

    def _dismiss(self, worker: _Worker) -> None:
        import ray

        ray.kill(worker.actor)
        self.workers.remove(worker)
        self._hire()

    def _hand_out(self, worker: _Worker) -> None:
        """Fill a worker's hands; a suspect only into empty ones, and nothing beside it."""
        if worker.loading is not None or worker.retired:
            return
        if any(number in self.deaths for number in worker.running.values()):
            return
        while len(worker.running) < self.in_hand and (number := self._next(worker)) is not None:
            worker.running[worker.actor.make.remote(number)] = number
        if not worker.running and self.suspects:
            number = self.suspects.popleft()
            worker.running[worker.actor.make.remote(number)] = number

    def _next(self, worker: _Worker) -> int | None:
        """The first waiting unit that this worker has not failed at, where there are others to take those."""
        for number in self.waiting:
            if worker not in self.tried.get(number, ()) or len(self.workers) == 1:
                self.waiting.remove(number)
                return number
        return None

    def _settle(self, worker: _Worker, ready: Any) -> None:
        import ray

        number = worker.running.pop(ready, None)
        try:
            result = ray.get(ready)
        except ray.exceptions.RayTaskError as error:
            self._failed(worker, number, _cause(error))
        except ray.exceptions.RayError as error:
            self._died(worker, number, error)
        else:
            if number is None:
                worker.loading, self.dead_loading = None, 0
                self.loaded(result)
            else:
                self.made += 1
                if self.answered is not None:
                    self.answered(number, result)
                self.told(number)
        if worker.retired and not worker.running and worker in self.workers:
            self._dismiss(worker)

    def _failed(self, worker: _Worker, number: int | None, error: Exception) -> None:
        """A worker said no: to its models, which ends the job, or to a unit, which another worker tries."""
        if number is None or isinstance(error, StoppedError):
            raise error if isinstance(error, Fmri2imgError) else _cannot_load(error)
        self.tried.setdefault(number, []).append(worker)
        if not isinstance(error, Fmri2imgError):
            worker.retired = True  # it may be the worker that is broken, as after an error of its GPU
        if len(self.tried[number]) < TRIES:
            self.waiting.append(number)
        else:
            self._give_up(number, error)

    def _died(self, worker: _Worker, number: int | None, error: Exception) -> None:
        """A worker is gone, with all it had in hand."""
        if number is None:
            self.dead_loading += 1
            if self.dead_loading >= DEATHS:
                raise _cannot_load(error)
        lost = [*worker.running.values(), *([] if number is None else [number])]
        worker.running.clear()
        for one in lost:
            self.deaths[one] += len(lost) == 1
            if self.deaths[one] >= DEATHS:
                self._give_up(one, Fmri2imgError(f"{DEATHS} workers died making it ({_line(error)})"))
            else:
                self.suspects.append(one)
        self._dismiss(worker)

    def _give_up(self, number: int, error: Exception) -> None:
        self.failed[number] = error
        check_hope(self.failed, made=self.made > 0)


def check_hope(failed: Mapping[int, Exception], *, made: bool) -> None:
    """Raise Fmri2imgError when the first units all failed: no unit is at fault, and GPU hours are dear."""
    if not made and len(failed) >= HOPELESS:
        last = list(failed.values())[-1]
        raise Fmri2imgError(
            f"the first {HOPELESS} units all failed, the last one: {_line(last)} Mend that and run it again"
        ) from last


def _cannot_load(error: Exception) -> Fmri2imgError:
    return Fmri2imgError(
        f"the workers cannot load their models ({type(error).__name__}: {_line(error)}): free memory, or use fewer "
        "--workers"
    )


def _cause(error: Any) -> Exception:
    """The error itself, without Ray's wrapping of it, which is of two classes at once."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, Exception) else error


def _line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
