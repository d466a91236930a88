"""Pretraining on two emulated nodes: what it makes, and what faults do to it."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from fmri2img import checkpoints_schema as schema
from fmri2img.errors import DamageError, Fmri2imgError, InputError
from fmri2img.launch.cluster import Place, cluster
from fmri2img.launch.events import read_events
from fmri2img.launch.pretraining import _ours, _plain, read_workers
from fmri2img.trainer.watch import read_records

pytestmark = pytest.mark.timeout(300)
SCRIPT = Path(sys.executable).with_name("fmri2img")
Say = Callable[..., Any]


def words(world: Any, out: Path, flags: list[str]) -> list[str]:
    made = ["pretrain", "--data", world.data, "--out", out, "--hold-out", "subj01", "--emulate-nodes", 2]
    return [str(word) for word in [*made, *flags]]


def weights(run: Path) -> dict[str, bytes]:
    tensors = load_file(schema.resolve(run).path / "model.safetensors")
    return {name: value.tobytes() for name, value in tensors.items()}


@pytest.fixture(scope="session")
def undisturbed(world: Any, said: Say, flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run of the command itself, with nothing going wrong, and the processes that were alive after it."""
    import psutil  # type: ignore[import-untyped]

    out = tmp_path_factory.mktemp("undisturbed") / "run"
    result = subprocess.run(
        [SCRIPT, *words(world, out, flags), "--wandb"],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    ray = [p for p in psutil.process_iter(["cmdline"]) if str(out) in " ".join(p.info["cmdline"] or [])]
    return out, ray


@pytest.mark.slow
def test_pretraining_on_two_nodes_makes_heads_of_the_others(undisturbed: Any, world: Any) -> None:
    run, alive = undisturbed
    (workers,) = read_workers(run)
    assert [worker["rank"] for worker in workers] == [0, 1]
    assert len({worker["node"] for worker in workers}) == 2
    assert alive == []
    manifest = schema.resolve(run).manifest
    assert {name: record.voxels for name, record in manifest.subjects.items()} == {"subj02": 34, "subj03": 36}
    logged = [record["step"] for record in read_records(run) if "train/loss" in record]
    assert logged == [5, 10, 15, 20, 25, 30]
    assert list((run / "wandb").glob("offline-run-*"))


@pytest.mark.slow
def test_a_killed_worker_changes_nothing_in_the_finished_model(
    undisturbed: Any, world: Any, said: Say, flags: list[str], faults: Any, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    killer = faults(run).at(step=10).kill(rank=1)
    with cluster(Place(2, 2)):
        result = said(*words(world, run, flags))
    assert result.code == 0, result.err
    assert len(killer.killed) == 1
    first, second = read_workers(run)
    assert {w["pid"] for w in first}.isdisjoint({w["pid"] for w in second})
    assert weights(run) == weights(undisturbed[0])
    logged = [record["step"] for record in read_records(run) if "train/loss" in record]
    assert logged == [5, 10, 15, 20, 25, 30]


@pytest.mark.slow
def test_a_killed_driver_leaves_a_run_that_the_same_command_finishes(
    undisturbed: Any, world: Any, flags: list[str], tmp_path: Path
) -> None:
    import psutil

    run = tmp_path / "run"
    driver = subprocess.Popen(
        [SCRIPT, *words(world, run, flags)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    while not (run / "checkpoints" / "step-00000010").exists():
        assert driver.poll() is None, driver.communicate()
        time.sleep(0.02)
    children = psutil.Process(driver.pid).children(recursive=True)
    driver.send_signal(signal.SIGTERM)
    _, err = driver.communicate(timeout=60)
    assert driver.returncode == 75, err
    stopped = schema.resolve(run).manifest.step
    assert err.splitlines() == [
        f"fmri2img: error: stopped after step {stopped} of 30: the same command goes on from there"
    ]
    assert read_events(run)[-1]["reason"].startswith(f"stopped after step {stopped} ")
    _, alive = psutil.wait_procs(children, timeout=20)
    assert [p for p in alive if p.status() != psutil.STATUS_ZOMBIE] == []
    assert 10 <= stopped < 30
    assert not list(run.glob(".*")), "nothing of the stop is left"
    result = subprocess.run(
        [SCRIPT, *words(world, run, flags)], capture_output=True, text=True, timeout=200, check=False
    )
    assert result.returncode == 0, result.stderr
    assert weights(run) == weights(undisturbed[0])


@pytest.mark.slow
def test_damage_that_a_worker_meets_reaches_the_user_as_one_line(
    said: Say, data: Path, world: Any, flags: list[str], tmp_path: Path
) -> None:
    file = sorted((data / "subj03").glob("train-*.responses.tar"))[-1]
    file.write_bytes(bytes(file.stat().st_size))
    started = ["pretrain", "--data", data, "--out", tmp_path / "run", "--hold-out", "subj01", "--workers", 2]
    with cluster(Place(2)):
        result = said(
            *started, *flags, "--set", "pretraining.validation=0", "--set", "pretraining.start=random"
        )
    assert result.code == 1
    assert str(file) in result.line
    assert len(read_workers(tmp_path / "run")) == 1, "an error of the data is not tried again"


class Failed(Exception):
    """Looks like Ray Train's error: an exception of every worker."""

    def __init__(self, worker_failures: dict[int, Exception]) -> None:
        super().__init__("Training failed due to worker errors:\nmuch text")
        self.worker_failures = worker_failures


def test_of_all_workers_errors_the_users_own_is_told() -> None:
    cause = RuntimeError("wrapped")
    cause.__cause__ = DamageError("a.tar is cut")
    echo = InputError("rank 1 failed with DamageError: a.tar is cut")
    found = _ours(Failed({0: echo, 1: cause}))
    assert isinstance(found, DamageError) and str(found) == "a.tar is cut"
    assert _ours(Failed({0: RuntimeError("Connection closed by peer")})) is None


def test_a_death_is_told_without_what_ray_wraps_around_it() -> None:
    assert _plain(Failed({1: RuntimeError("Trace\n\nThe worker died")})) == "worker 1 failed: The worker died"
    assert _plain(RuntimeError("no resources\n")) == "training failed: no resources"
    assert not isinstance(_ours(RuntimeError("x")), Fmri2imgError)


def by_torchrun(*words: object, processes: int = 2) -> list[str]:
    start = [SCRIPT.with_name("torchrun"), "--nproc-per-node", processes, "--rdzv-backend", "c10d"]
    start += ["--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1", "--no-python", SCRIPT, *words]
    return [str(word) for word in start]


def torchrun(*words: object, processes: int = 2) -> subprocess.CompletedProcess[str]:
    start = by_torchrun(*words, processes=processes)
    return subprocess.run(start, capture_output=True, text=True, timeout=200, check=False)


@pytest.mark.slow
def test_two_processes_of_torchrun_make_the_same_model_without_ray(
    undisturbed: Any, world: Any, flags: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    result = torchrun("pretrain", "--data", world.data, "--out", run, "--hold-out", "subj01", *flags)
    assert result.returncode == 0, result.stderr
    assert weights(run) == weights(undisturbed[0])
    assert result.stdout.count("Checkpoint") == 1  # one process speaks
    assert not (run / "workers.jsonl").exists()


@pytest.mark.slow
def test_a_killed_process_of_torchrun_takes_the_others_along_and_the_same_command_goes_on(
    undisturbed: Any, world: Any, flags: list[str], tmp_path: Path
) -> None:
    import psutil

    run = tmp_path / "run"
    command = by_torchrun("pretrain", "--data", world.data, "--out", run, "--hold-out", "subj01", *flags)
    group = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not (run / "checkpoints" / "step-00000010").exists():
        assert group.poll() is None, group.communicate()
        time.sleep(0.02)
    ranks = [
        child
        for child in psutil.Process(group.pid).children()
        if child.environ().get("RANK") in ("0", "1") and str(SCRIPT) in child.cmdline()
    ]
    assert len(ranks) == 2
    next(child for child in ranks if child.environ()["RANK"] == "1").kill()
    group.communicate(timeout=60)
    assert group.returncode != 0
    _, alive = psutil.wait_procs(ranks, timeout=10)
    assert alive == []
    assert 10 <= schema.resolve(run).manifest.step < 30
    result = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert result.returncode == 0, result.stderr
    assert weights(run) == weights(undisturbed[0])
    logged = [record["step"] for record in read_records(run) if "train/loss" in record]
    assert logged == [5, 10, 15, 20, 25, 30]


@pytest.mark.slow
def test_sigterm_to_torchrun_leaves_a_checkpoint_of_the_step_under_way(
    world: Any, flags: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = by_torchrun("pretrain", "--data", world.data, "--out", run, "--hold-out", "subj01", *flags)
    command += ["--set", "pretraining.steps=20000", "--set", "pretraining.checkpoint_every=20000"]
    group = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not read_records(run):
        assert group.poll() is None, group.communicate()
        time.sleep(0.02)
    group.send_signal(signal.SIGTERM)
    _, err = group.communicate(timeout=60)
    assert group.returncode != 0
    stopped = schema.resolve(run).manifest.step
    assert f"stopped after step {stopped} of 20000" in err
    assert schema.verify(schema.resolve(run).path) == []


@pytest.mark.slow
def test_torchrun_and_ray_are_not_asked_to_start_workers_both(
    world: Any, flags: list[str], tmp_path: Path
) -> None:
    result = torchrun(
        "pretrain", "--data", world.data, "--out", tmp_path / "run", "--emulate-nodes", 2, *flags
    )
    assert result.returncode != 0
    assert "torchrun has started the workers already" in result.stderr
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.slow
def test_one_process_of_torchrun_finetunes(world: Any, flags: list[str], tmp_path: Path) -> None:
    where = [
        "--from",
        world.pretrained,
        "--data",
        world.data,
        "--subject",
        "subj01",
        "--out",
        tmp_path / "run",
    ]
    result = torchrun("finetune", *where, *flags, processes=1)
    assert result.returncode == 0, result.stderr
    assert set(schema.resolve(tmp_path / "run").manifest.subjects) == {"subj01"}
