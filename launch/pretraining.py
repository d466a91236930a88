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
from pathlib import Path
from typing import Any

from fmri2img import checkpoints_schema as schema
from fmri2img.console import output
from fmri2img.datasets.remote import absolute
from fmri2img.errors import Fmri2imgError, StoppedError
from fmri2img.files import alone
from fmri2img.launch.cluster import Place, cluster, leave_source_tree, worker_environment
from fmri2img.launch.doctor import preflight
from fmri2img.launch.events import Story, checkpoint_steps, following_nodes, telling
from fmri2img.launch.fitting import controller_noted, fit_aside
from fmri2img.launch.overseer import HEAD_LOST, Overseer
from fmri2img.launch.room import MoreRoom, check_range, find_room, more_room
from fmri2img.launch.slots import alive_nodes, has_gpus, head_answers, worker_resources
from fmri2img.trainer import stopping
from fmri2img.trainer.collectives import gather_objects, rank
from fmri2img.trainer.config import Recipe
from fmri2img.trainer.stages import StageSpec, open_material, pretrain
from fmri2img.trainer.state import find_resumable
from fmri2img.trainer.watch import Record, read_records

WORKERS = "workers.jsonl"


def launch_pretraining(
    spec: StageSpec, place: Place, *, max_failures: int = 2, listener: Callable[[Record], None] | None = None
) -> Path:
    """Run `trainer.pretrain` on `place.workers` workers and return the final checkpoint.

    Bad input is refused here, before a cluster is started. Workers that die are started again from the newest whole
    checkpoint, up to `max_failures` times in a row without a new one. When nodes are lost and do not return within
    `place.patience` seconds, the run goes on with as many workers as find a place and `place.least` allows, until there
    is room for more again; below that, StoppedError says with how many it could go on.
    """
    recipe = Recipe.model_validate(spec.recipe)
    check_range(spec, place)
    open_material(spec, recipe, recipe.pretraining)
    run = Path(spec.run).resolve()
    resumed = find_resumable(run, spec.config())
    if resumed is not None and resumed.step >= recipe.pretraining.steps:
        return schema.resolve(run).path
    run.mkdir(parents=True, exist_ok=True)
    spec = dataclasses.replace(spec, run=str(run), data=str(absolute(spec.data)))
    where = place.address or (
        f"{place.emulate_nodes} emulated nodes" if place.emulate_nodes else "this machine"
    )
    with (
        alone(run, f"{run} is in use by another job: wait for its end, or give another --out"),
        telling(run, "pretrain", workers=place.workers, cluster=where) as story,
        cluster(place),
        following_nodes(story, alive_nodes),
        _following(run, listener, story),
    ):
        if place.preflight:
            preflight(address=place.address, data=Path(spec.data), out=run)
        _fit(spec, place, max_failures, story)
    return schema.resolve(run).path


def _fit(spec: StageSpec, place: Place, max_failures: int, story: Story) -> None:
    """Train to the end, with new workers when one died. What we raised ourselves would only be raised again."""
    run = Path(spec.run)
    failures, saved, interrupted, wanted = 0, _newest(run), False, None
    while True:
        workers = find_room(spec, place, story, interrupted=interrupted, wanted=wanted)
        wanted = None
        try:
            return _attempt(spec, place, workers)
        except MoreRoom as more:
            story.tell("growing", workers=more.workers, step=_newest(run))
            output().print(f"  room for {more.workers} workers: going on with them", markup=False)
            saved, interrupted, wanted = _newest(run), True, more.workers
        except StoppedError as error:  # told to stop: the workers know after which step
            if error.__cause__ is not None and (ours := _ours(error.__cause__)) is not None:
                raise ours from error
            raise
        except Fmri2imgError:
            raise
        except Exception as error:
            ours = _ours(error)
            if ours is not None:
                raise ours from error
            told = _plain(error)
            failures = 1 if _newest(run) > saved else failures + 1
            saved, interrupted = _newest(run), True
            story.failed(told)
            if failures > max_failures:
                raise Fmri2imgError(f"{told}; the same command goes on from the last checkpoint") from error
            output().print(f"  {told}: starting workers again from the last checkpoint", markup=False)


def _newest(run: Path) -> int:
    return max(checkpoint_steps(run), default=-1)


def _attempt(spec: StageSpec, place: Place, workers: int) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    gpu, run = has_gpus(), Path(spec.run)
    # In the run folder, because every node must see it.
    storage = Path(tempfile.mkdtemp(prefix=".ray-", dir=run))
    trainer = TorchTrainer(
        _worker,
        train_loop_config=dataclasses.asdict(spec),
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=workers, use_gpu=gpu, resources_per_worker=worker_resources()
        ),
        run_config=RunConfig(
            name="pretraining",
            storage_path=str(storage),
            # `_fit` decides about failures, since Ray cannot tell whose error it is.
            failure_config=FailureConfig(  # type: ignore[call-arg]  # mypy sees Ray's old class
                max_failures=0, controller_failure_limit=0, max_preemption_failures=0
            ),
            callbacks=[controller_noted(storage)],
            worker_runtime_env={"env_vars": worker_environment(threads=1, gpu=gpu)},
        ),
    )
    starts = len(read_workers(run))

    def ask() -> bool:
        stopping.request(run)
        return len(read_workers(run)) > starts

    stopping.withdraw(run)
    overseer = Overseer(
        run,
        storage,
        hang_after=place.hang_after,
        room=lambda: more_room(spec, place, workers),
        head=head_answers,
    )
    try:
        with overseer:
            fit_aside(trainer.fit, folder=storage, ask=ask, grace=place.grace)
    except StoppedError:
        raise
    except Exception as error:
        if not head_answers():  # nobody else ends its workers for a minute
            stopping.request(run, at_once=True)
            time.sleep(4 * stopping.LOOK_SECONDS)
            raise HEAD_LOST from None
        if overseer.told is not None:
            raise overseer.told from error
        raise
    finally:
        stopping.withdraw(run)
        shutil.rmtree(storage, ignore_errors=True)


def _worker(config: dict[str, Any]) -> None:
    leave_source_tree()
    for key in ("subjects", "sessions"):
        config[key] = None if config[key] is None else tuple(config[key])
    spec = StageSpec(**config)
    stopping.watch_file(Path(spec.run))
    _note_workers(Path(spec.run))
    pretrain(spec)


def _note_workers(run: Path) -> None:
    """Add a line to the run's `workers.jsonl`: who trains from now on, on which node. One line a start."""
    import ray
    import ray.train

    own = {
        "rank": rank(),
        "node": ray.get_runtime_context().get_node_id(),
        "node_rank": ray.train.get_context().get_node_rank(),
        "address": ray.util.get_node_ip_address(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
    }
    workers = gather_objects(own)
    if rank() == 0:
        with open(run / WORKERS, "a") as file:
            file.write(json.dumps({"time": round(time.time(), 3), "workers": workers}) + "\n")


def read_workers(run: Path) -> list[list[dict[str, Any]]]:
    """Who trained, start after start: rank, node, address, host and process id of every worker."""
    if not (run / WORKERS).exists():
        return []
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
    """While the block runs, pass on what workers write: their only channel.

    New lines of the metrics go to the listener; new workers go into the story.
    """

    def __init__(self, run: Path, listener: Callable[[Record], None] | None, story: Story) -> None:
        self.run, self.listener, self.story = run, listener, story
        self.starts = len(read_workers(run))
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> None:
        self.started = time.time()
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()

    def _follow(self) -> None:
        seen = self.started - 1
        while True:
            last = self.done.wait(0.5)
            for workers in (starts := read_workers(self.run))[self.starts :]:
                self.story.going(workers)
            self.starts = len(starts)
            fresh = [record for record in read_records(self.run) if record["time"] > seen]
            for record in fresh:
                if self.listener is not None:
                    self.listener(record)
                seen = max(seen, record["time"])
            if last:
                return
