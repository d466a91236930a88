"""Job files run for real: Slurm's and SSH's commands are stood in for by scripts that enter the hosts' namespaces."""

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fmri2img.cli import run as command
from fmri2img.launch.events import read_events
from fmri2img.trainer.watch import read_records

STAND_INS = Path(__file__).with_name("bin")
Agrees = Callable[[Path], bool]


def written(kind: str, out: Path, world: Any, run: Path, *flags: object) -> Path:
    words = ["launch", kind, "--out", out, "--cpus-per-node", 2, *flags, "--", *world.words(run)]
    assert command([str(word) for word in words]) == 0
    return out


def started(made: Any, script: Path, log: Path, **env: str) -> "subprocess.Popen[str]":
    path = f"{STAND_INS}{os.pathsep}{made.env['PATH']}"
    return made.host(0).start("bash", script, log=log, PATH=path, **env)


def at_step(lab: Any, run: Path, step: int, job: "subprocess.Popen[str]", log: Path) -> None:
    def there() -> bool:
        assert job.poll() is None, log.read_text()
        return any(record["step"] >= step for record in read_records(run))

    lab.wait_for(there, seconds=200, told=f"step {step}")


def nothing_runs(lab: Any, made: Any) -> None:
    lab.wait_for(lambda: not any(host.pids for host in made.hosts), seconds=40, told="all hosts are empty")


def test_a_slurm_job_at_the_end_of_its_time_is_requeued_and_goes_on_to_the_same_model(
    lab: Any, world: Any, agrees: Agrees, tmp_path: Path
) -> None:
    run, log, requeued = tmp_path / "run", tmp_path / "log", tmp_path / "requeued"
    script = written("slurm", tmp_path / "job.sh", world, run, "--nodes", 2)
    with lab.hosts(2) as made:
        job = {
            "SLURM_JOB_ID": str(os.getpid()),
            "SLURM_JOB_NODELIST": ",".join(host.name for host in made.hosts),
            "REQUEUED": str(requeued),
            "FMRI2IMG_RAY_FOLDER": str(made.host(0).folder / "ray"),
        }
        batch = started(made, script, log, **job)
        at_step(lab, run, 10, batch, log)
        batch.send_signal(signal.SIGTERM)
        assert batch.wait(100) == 75, log.read_text()
        nothing_runs(lab, made)
        assert requeued.read_text().split() == [job["SLURM_JOB_ID"]]
        assert not (made.host(0).folder / "ray").exists()
        assert read_events(run)[-1]["exit_code"] == 75
        again = started(made, script, log, **job, SLURM_RESTART_COUNT="1")
        assert again.wait(250) == 0, log.read_text()
        nothing_runs(lab, made)
    assert agrees(run)
    assert len(requeued.read_text().split()) == 1
    assert made.env["RAY_AUTH_TOKEN"] not in log.read_text()


def test_hosts_over_ssh_are_left_empty_by_a_killed_script_and_finish_the_model_with_the_next(
    lab: Any, world: Any, agrees: Agrees, tmp_path: Path
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    with lab.hosts(2) as made:
        names = [host.name for host in made.hosts]
        script = written("ssh", tmp_path / "job.sh", world, run, "--hosts", *names)
        first = started(made, script, log)
        at_step(lab, run, 10, first, log)
        first.send_signal(signal.SIGKILL)
        nothing_runs(lab, made)
        again = started(made, script, log)
        assert again.wait(250) == 0, log.read_text()
        nothing_runs(lab, made)
    assert agrees(run)
