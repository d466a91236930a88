"""The pretraining job: Ray Train starts the workers and watches them; the trainer does the rest."""

import dataclasses
import json
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from fmri2img import checkpoints_schema as schema
from fmri2img.console import output
from fmri2img.datasets.remote import absolute
from fmri2img.errors import Fmri2imgError
from fmri2img.launch.cluster import WORKER, Place, cluster, leave_source_tree, worker_environment
from fmri2img.trainer.collectives import gather_objects, rank
from fmri2img.trainer.config import Recipe
from fmri2img.trainer.loop import check_layout
from fmri2img.trainer.stages import StageSpec, open_material, pretrain
from fmri2img.trainer.state import find_resumable
from fmri2img.trainer.watch import METRICS, Record, read_records

WORKERS = "workers.jsonl"


def launch_pretraining(
    spec: StageSpec, place: Place, *, max_failures: int = 2, listener: Callable[[Record], None] | None = None
) -> Path:
    """Run `trainer.pretrain` on `place.workers` workers and return the final checkpoint.

    Bad input is refused here, before a cluster is started. A worker that dies is started again, up to `max_failures`
    times, and the run goes on from its newest whole checkpoint.
    """
    recipe = Recipe.model_validate(spec.recipe)
    check_layout(recipe.pretraining, spec.subjects, world=place.workers)
    open_material(spec, recipe, recipe.pretraining)
    run = Path(spec.run).resolve()
    resumed = find_resumable(run, spec.config())
    if resumed is not None and resumed.step >= recipe.pretraining.steps:
        return schema.resolve(run).path
    run.mkdir(parents=True, exist_ok=True)
    spec = dataclasses.replace(spec, run=str(run), data=str(absolute(spec.data)))
    with cluster(place), _following(run, listener):
        _fit(spec, place, max_failures)
    return schema.resolve(run).path


def _fit(spec: StageSpec, place: Place, max_failures: int) -> None:
    """Train to the end, with new workers when one died. What we raised ourselves would only be raised again."""
    for left in range(max_failures, -1, -1):
        try:
            return _attempt(spec, place)
        except Fmri2imgError:
            raise
        except Exception as error:
            ours = _ours(error)
            if ours is not None:
                raise ours from error
            if not left:
                raise Fmri2imgError(
                    f"{_plain(error)}; the same command goes on from the last checkpoint"
                ) from error
            output().print(
                f"  {_plain(error)}: starting workers again from the last checkpoint", markup=False
            )


def _attempt(spec: StageSpec, place: Place) -> None:
    import torch
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    gpu = torch.cuda.is_available()
    storage = Path(tempfile.mkdtemp(prefix="fmri2img-ray-"))
    trainer = TorchTrainer(
        _worker,
        train_loop_config=dataclasses.asdict(spec),
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=place.workers,
            use_gpu=gpu,
            resources_per_worker={"CPU": 1, WORKER: 1} | ({"GPU": 1} if gpu else {}),
        ),
        run_config=RunConfig(
            name="pretraining",
            storage_path=str(storage),
            failure_config=FailureConfig(
                max_failures=0
            ),  # `_fit` decides, since Ray cannot tell whose error it is
            worker_runtime_env={"env_vars": worker_environment(threads=1)},  # type: ignore[call-arg]  # mypy sees Ray's old class
        ),
    )
    try:
        _aside(trainer.fit)
    finally:
        shutil.rmtree(storage, ignore_errors=True)


def _aside(work: Callable[[], object]) -> None:
    """Do the work in another thread, where Ray Train takes no signals: its Ctrl-C ends with exit code 0."""
    ended: Future[None] = Future()

    def run() -> None:
        try:
            work()
            ended.set_result(None)
        except BaseException as error:
            ended.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    ended.result()


def _worker(config: dict[str, Any]) -> None:
    leave_source_tree()
    for key in ("subjects", "sessions"):
        config[key] = None if config[key] is None else tuple(config[key])
    spec = StageSpec(**config)
    _note_workers(Path(spec.run))
    pretrain(spec)


def _note_workers(run: Path) -> None:
    """Add a line to the run's `workers.jsonl`: who trains from now on, on which node. One line a start."""
    import ray

    own = {
        "rank": rank(),
        "node": ray.get_runtime_context().get_node_id(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
    }
    workers = gather_objects(own)
    if rank() == 0:
        with open(run / WORKERS, "a") as file:
            file.write(json.dumps({"time": round(time.time(), 3), "workers": workers}) + "\n")


def read_workers(run: Path) -> list[list[dict[str, Any]]]:
    """Who trained, start after start: rank, node, host and process id of every worker."""
    return [json.loads(line)["workers"] for line in (run / WORKERS).read_text().splitlines()]


def _plain(error: BaseException) -> str:
    """What happened, without Ray's wrapping: the first worker's part of it where it was a worker."""
    failures = getattr(error, "worker_failures", None) or {}
    for number, cause in sorted(failures.items()):
        return f"worker {number} failed: {_last_line(cause)}"
    return f"training failed: {_last_line(error)}"


def _ours(error: BaseException) -> Fmri2imgError | None:
    """Our own error among those of all workers. One that tells of another rank's comes last."""
    failures = getattr(error, "worker_failures", None) or {0: error}
    found = [ours for _, cause in sorted(failures.items()) if (ours := _inner(cause)) is not None]
    return min(found, key=lambda ours: str(ours).startswith("rank "), default=None)


def _inner(error: BaseException | None) -> Fmri2imgError | None:
    while error is not None:
        if isinstance(error, Fmri2imgError):
            return type(error)(str(error).splitlines()[-1]) if "\n" in str(error) else error
        error = error.__cause__ or getattr(error, "cause", None)
    return None


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


class _following:
    """While the block runs, pass new lines of the run's metrics file to the listener: the workers' only channel."""

    def __init__(self, run: Path, listener: Callable[[Record], None] | None) -> None:
        self.path, self.listener = run / METRICS, listener
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> None:
        self.started = time.time()
        if self.listener is not None:
            self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.done.set()
        if self.thread.is_alive():
            self.thread.join()

    def _follow(self) -> None:
        seen = self.started - 1
        while True:
            last = self.done.wait(0.5)
            fresh = [record for record in read_records(self.path.parent) if record["time"] > seen]
            for record in fresh:
                if self.listener is not None:
                    self.listener(record)
                seen = max(seen, record["time"])
            if last:
                return
