"""Weights & Biases as a copy of a run's metrics.jsonl: the same lines under the same names, every step once.

The file is the truth. An offline run is told the whole file anew at every start, into one new folder that replaces
those of earlier starts: of what a killed process had told wandb, up to 32 KB die with it (wandb 0.31). An online run
goes on after the last step that the server has. Nothing that wandb does stops training.
"""

import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from fmri2img.files import write_atomic

START_SECONDS = 30.0  # for the server to answer at the start
FINISH_SECONDS = 300.0  # for what is left to upload at the end, where the network is gone


class Tracker:
    """One run of wandb, under the id that the run folder keeps. `warn` is told once when wandb fails."""

    def __init__(
        self,
        folder: Path,
        config: dict[str, Any],
        told: Iterable[Mapping[str, Any]],
        *,
        warn: Callable[[str], None],
    ) -> None:
        self.folder, self.config, self.warn = folder, config, warn
        self.held = -1
        self.run: Any = None
        self._start(os.environ.get("WANDB_MODE", "offline"))
        for line in told:
            self.send(line)

    def _start(self, mode: str) -> None:
        try:
            self._begin(mode)
            return
        except Exception as error:  # whatever wandb fails with, training goes on and the file has it all
            reason = _reason(error)
        if mode != "online":
            self.warn(f"wandb does not start ({reason}): training goes on without it")
            return
        try:
            import wandb

            wandb.teardown()  # it holds the id of a run that did not start
            self._begin("offline")
        except Exception as error:
            self.run = None
            self.warn(
                f"wandb starts neither online ({reason}) nor offline ({_reason(error)}): training goes on"
            )
            return
        later = self.folder / "wandb"
        self.warn(
            f"wandb cannot be reached ({reason}): this run is kept offline; send it later with "
            f"`wandb sync {later}/offline-run-*`"
        )

    def _begin(self, mode: Any) -> None:
        import wandb

        identity = self.folder / "wandb-id"
        if not identity.exists():
            write_atomic(identity, uuid.uuid4().hex[:8].encode())
        name = identity.read_text()
        if mode == "offline":
            for old in (self.folder / "wandb").glob(f"offline-run-*-{name}"):
                shutil.rmtree(old)
        settings = wandb.Settings(finish_timeout=FINISH_SECONDS)
        if mode == "online":
            settings.init_timeout = START_SECONDS
        self.run = wandb.init(
            project="fmri2img",
            id=name,
            resume="allow",
            dir=str(self.folder),
            config=self.config,
            mode=mode,
            settings=settings,
        )
        self.held = int(self.run.starting_step) - 1

    def send(self, line: Mapping[str, Any]) -> None:
        """One line of the file, unless wandb has its step from before. Lines of one step become one row."""
        if self.run is None or line["step"] <= self.held:
            return
        try:
            self.run.log(self._with_pictures(line), step=line["step"])
        except Exception as error:
            self.run = None
            self.warn(
                f"wandb failed at step {line['step']} ({_reason(error)}): training goes on without it, and "
                "metrics.jsonl has every step; a run that is resumed tells wandb what it missed"
            )

    def _with_pictures(self, line: Mapping[str, Any]) -> dict[str, Any]:
        sent = dict(line)
        for key, value in line.items():
            if key.startswith("pictures/"):
                import wandb

                sent[key] = wandb.Image(str(self.folder / value))
        return sent

    def close(self) -> None:
        """End the run."""
        if self.run is None:
            return
        try:
            self.run.finish()
        except Exception as error:
            self.warn(f"wandb did not finish ({_reason(error)}): metrics.jsonl has every step")


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
