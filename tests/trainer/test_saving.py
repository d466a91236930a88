"""Training does not wait for a checkpoint to be written, only for the copy that is written."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fmri2img.trainer import saving
from fmri2img.trainer.stages import finetune
from fmri2img.trainer.state import write_step


def test_steps_go_on_while_a_checkpoint_is_written_and_do_not_change_it(
    spec: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    finetune(spec("quiet", keep=9))
    later = threading.Event()

    def slow(folder: Path, step: int, *arguments: Any, **options: Any) -> Path:
        if step == 2:
            assert later.wait(30), "step 3 was not taken before the checkpoint of step 2 was written"
        return write_step(folder, step, *arguments, **options)

    def hear(record: dict[str, Any]) -> None:
        if record["step"] == 3:
            later.set()

    monkeypatch.setattr(saving, "write_step", slow)
    finetune(spec("slow", keep=9), listener=hear)
    for name in ("model.safetensors", "state/optimiser.safetensors"):
        one, other = (
            Path(spec(run).run, "checkpoints", "step-00000002", name).read_bytes()
            for run in ("quiet", "slow")
        )
        assert one == other
