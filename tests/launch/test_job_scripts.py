"""What the scripts of job files do when a job ends, is stopped or dies: every program they call is stood in for.

`tests/cluster/test_job_files.py` runs the same scripts with real Ray over real hosts.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from fmri2img.cli import run as command

PROGRAMS = {
    # Ray's node: lives until SIGTERM; the head listens.
    "ray": f"""#!{sys.executable}
import os, socket, sys, time
words = dict(word.lstrip("-").partition("=")[::2] for word in sys.argv[2:])
open(os.environ["NOTES"] + "/ray", "a").write(os.environ["RAY_AUTH_TOKEN"] + " " + " ".join(sys.argv) + "\\n")
if "temp-dir" in words:
    os.makedirs(words["temp-dir"])
    server = socket.create_server((words["node-ip-address"], int(words["port"])))
time.sleep(600)
""",
    # The command: ends when it is told to, or with 75 at SIGTERM.
    "fmri2img": f"""#!{sys.executable}
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
notes = os.environ["NOTES"]
open(notes + "/command", "w").write(" ".join(sys.argv[1:]))
while not os.path.exists(notes + "/end"):
    time.sleep(0.05)
sys.exit(int(open(notes + "/end").read()))
""",
    "srun": """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
[ "$1" != hostname ] && case "$*" in *getent*) echo "$ADDRESS"; exit ;; esac
exec "$@"
""",
    "scontrol": """#!/bin/bash
case "$1 $2" in
    "show hostnames") tr , '\\n' <<<"$3" ;;
    requeue*) echo "$2" >>"$NOTES/requeued" ;;
esac
""",
    "ssh": """#!/bin/bash
while [[ $1 == -* ]]; do [ "$1" = -o ] && shift; shift; done
shift
export SSH_CONNECTION="192.0.2.1 40000 $ADDRESS 22"
exec sh -c "$*"
""",
}


class Job:
    """A script that runs with stood-in programs."""

    def __init__(self, kind: str, flags: list[str], folder: Path) -> None:
        self.notes, self.folder = folder / "notes", folder
        self.notes.mkdir()
        programs = folder / "programs"
        programs.mkdir()
        for name, text in PROGRAMS.items():
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)
        words = ["launch", kind, "--out", str(folder / "job.sh"), *flags]
        assert command([*words, "--", "pretrain", "--data", "/d d", "--out", "/r"]) == 0
        self.env = os.environ | {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "NOTES": str(self.notes),
            "ADDRESS": f"127.{os.getpid() // 60000 % 200 + 1}.{os.getpid() // 250 % 240}.{os.getpid() % 250 + 1}",
            "SLURM_JOB_ID": str(os.getpid()),
            "SLURM_JOB_NODELIST": "one,two",
            "FMRI2IMG_RAY_FOLDER": str(folder / "ray"),
        }

    def start(self, **env: str) -> "subprocess.Popen[bytes]":
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                ["bash", self.folder / "job.sh"], env=self.env | env, stdout=log, stderr=log
            )
        wait(lambda: (self.notes / "command").exists(), self.log)
        wait(lambda: len(self.note("ray").splitlines()) == 2, self.log)
        self.children = psutil.Process(self.process.pid).children(recursive=True)
        return self.process

    def note(self, name: str) -> str:
        return (self.notes / name).read_text() if (self.notes / name).exists() else ""

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def ended(self) -> int:
        """The exit code; when it is there, nothing that the script started may run any more."""
        code = self.process.wait(60)
        _, alive = psutil.wait_procs(self.children, timeout=20)
        assert [p for p in alive if p.status() != psutil.STATUS_ZOMBIE] == []
        return code


def wait(what: Callable[[], bool], log: Callable[[], str]) -> None:
    end = time.monotonic() + 60
    while not what():
        assert time.monotonic() < end, log()
        time.sleep(0.05)


KINDS = {"slurm": ["--nodes", "2"], "ssh": ["--hosts", "one", "two", "--port", "21377"]}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("code", [0, 1])
def test_the_exit_code_is_the_commands_and_nothing_runs_after_it(
    kind: str, code: int, tmp_path: Path
) -> None:
    job = Job(kind, KINDS[kind], tmp_path)
    job.start()
    (job.notes / "end").write_text(str(code))
    assert job.ended() == code, job.log()
    assert job.note("requeued") == ""
    assert not (tmp_path / "ray").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_sigterm_stops_the_command_and_only_slurm_puts_the_job_back(kind: str, tmp_path: Path) -> None:
    job = Job(kind, KINDS[kind], tmp_path)
    job.start().send_signal(signal.SIGTERM)
    assert job.ended() == 75, job.log()
    assert job.note("requeued") == (f"{os.getpid()}\n" if kind == "slurm" else "")


def test_a_slurm_job_that_was_put_back_often_enough_stays_out(tmp_path: Path) -> None:
    job = Job("slurm", [*KINDS["slurm"], "--requeues", "3"], tmp_path)
    job.start(SLURM_RESTART_COUNT="3").send_signal(signal.SIGTERM)
    assert job.ended() == 75
    assert job.note("requeued") == ""


def test_hosts_over_ssh_are_left_empty_when_the_script_is_killed(tmp_path: Path) -> None:
    job = Job("ssh", KINDS["ssh"], tmp_path)
    job.start().send_signal(signal.SIGKILL)
    assert job.ended() == -signal.SIGKILL


@pytest.mark.parametrize("kind", KINDS)
def test_every_node_gets_one_secret_token_which_stands_on_no_command_line(kind: str, tmp_path: Path) -> None:
    job = Job(kind, KINDS[kind], tmp_path)
    job.start()
    token, other = (line.split()[0] for line in job.note("ray").splitlines())
    assert token == other and len(token) == 64
    lines = [
        " ".join(p.cmdline()) for p in [psutil.Process(job.process.pid), *job.children] if p.is_running()
    ]
    assert lines and not any(token in line for line in lines)
    assert job.note("command").startswith("pretrain --data /d d --out /r --workers 2")
    (job.notes / "end").write_text("0")
    assert job.ended() == 0
    assert token not in job.log()
