"""Who asks a training to stop gets a checkpoint of the step under way, and the same command makes the same model."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fmri2img import checkpoints_schema as schema
from fmri2img.errors import StoppedError
from fmri2img.trainer import stopping
from fmri2img.trainer.stages import finetune
from fmri2img.trainer.watch import Record

Spec = Callable[..., Any]


def model(run: str) -> bytes:
    return (schema.resolve(Path(run)).path / "model.safetensors").read_bytes()


def at(step: int, act: Callable[[], object]) -> Callable[[Record], None]:
    def listen(record: Record) -> None:
        if record["step"] == step and "train/loss" in record:
            act()

    return listen


def stopped_steps(run: str) -> list[int]:
    return [int(path.name[-8:]) for path in sorted((Path(run) / "checkpoints").iterdir())]


def test_sigterm_stops_after_the_next_step_with_a_checkpoint_of_it(spec: Spec, handler: None) -> None:
    run = spec("run", steps=8, checkpoint_every=100)
    with pytest.raises(StoppedError, match="stopped after step 4 of 8: the same command goes on from there"):
        finetune(run, listener=at(3, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    assert stopped_steps(run.run) == [4]
    finetune(run)
    finetune(whole := spec("whole", steps=8, checkpoint_every=100))
    assert model(run.run) == model(whole.run)


def test_sigterm_in_the_last_step_ends_the_run_as_ever(spec: Spec, handler: None) -> None:
    run = spec("run", steps=4)
    finetune(run, listener=at(3, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    assert schema.resolve(Path(run.run)).manifest.step == 4


def test_sigterm_outside_of_training_ends_the_command_at_once(handler: None) -> None:
    assert not stopping.ask()
    with pytest.raises(StoppedError, match="stopped by SIGTERM"):
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_request_in_the_run_folder_is_heard_and_can_be_withdrawn(
    spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopping, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(stopping._State, "file", None)
    run = spec("run", steps=8, checkpoint_every=100)
    stopping.watch_file(Path(run.run))
    with pytest.raises(StoppedError, match="after step 3"):
        finetune(run, listener=at(2, lambda: stopping.request(Path(run.run))))
    stopping.withdraw(Path(run.run))
    finetune(run)
    assert schema.resolve(Path(run.run)).manifest.step == 8


def test_who_is_told_to_go_at_once_goes_whatever_it_waits_for(tmp_path: Path) -> None:
    waits = (
        "import sys, threading; from pathlib import Path; from fmri2img.trainer import stopping; "
        "stopping.watch_file(Path(sys.argv[1])); print('waits', flush=True); threading.Event().wait()"
    )
    with subprocess.Popen([sys.executable, "-P", "-c", waits, tmp_path], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"waits\n"
        stopping.request(tmp_path)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(3 * stopping.LOOK_SECONDS)
        stopping.request(tmp_path, at_once=True)
        assert process.wait(30) == 1
