"""Checkpoints that are written while training goes on: the loop waits for a copy in the memory of the host, no longer.

A checkpoint counts once its folder is committed. One that was still being written when the process died leaves a hidden
folder, which the next start removes, and the run goes on from the one before.
"""

import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fmri2img import checkpoints_schema as schema
from fmri2img.trainer.collectives import broadcast_object, fail_together, rank
from fmri2img.trainer.engines import Engine
from fmri2img.trainer.state import BEST, OPTIMISER, Best, Identity, checkpoints_of, write_step


class Saver:
    """Saves the steps of one run, one at a time. Every rank has one and calls its methods in the same order."""

    def __init__(self, run: Path, engine: Engine, identity: Identity, *, keep: int) -> None:
        self.folder, self.engine, self.identity, self.keep = checkpoints_of(run), engine, identity, keep
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def save(
        self,
        step: int,
        *,
        metrics: Mapping[str, float],
        finished: Mapping[str, Mapping[str, Tensor]] | None = None,
        best: Best | None = None,
    ) -> Path:
        """Begin to write `step-...`: the whole model and the state to resume from. Collective.

        `finished` are the files of the finished model, where it differs from the weights (best step, alignment).
        Raises on all ranks what the checkpoint before this one could not be written for.
        """
        self.wait()
        files = _files(self.engine, finished)
        position: dict[str, Any] = {}
        if best is not None and best.step >= 0:
            position["best"] = {"loss": best.loss, "step": best.step}
            if best.tensors:
                files[BEST] = best.tensors
        token = broadcast_object(schema.new_token())
        if rank() == 0:
            arguments = (step, token, files, dict(metrics), position)
            self._thread = threading.Thread(target=self._write, args=arguments, name="checkpoint")
            self._thread.start()
        return schema.step_path(self.folder, step)

    def wait(self) -> None:
        """Until everything is committed; raises on all ranks what went wrong. Collective."""
        self.join()
        error, self._error = self._error, None
        fail_together(error)

    def join(self) -> None:
        """Until this process writes nothing any more. Not collective, for the way out of a failure."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write(
        self,
        step: int,
        token: str,
        files: Mapping[str, Mapping[str, Tensor]],
        metrics: Mapping[str, float],
        position: Mapping[str, Any],
    ) -> None:
        try:
            write_step(self.folder, step, token, files, self.identity, metrics=metrics, position=position)
            _forget_old(self.folder, self.keep)
        except OSError as error:
            self._error = schema.stopped(error, self.folder, step)
            schema.discard(schema.staging_path(self.folder, step, token))
        except Exception as error:  # raised on all ranks by the next `wait`
            self._error = error
            schema.discard(schema.staging_path(self.folder, step, token))


def _files(
    engine: Engine, finished: Mapping[str, Mapping[str, Tensor]] | None
) -> dict[str, Mapping[str, Tensor]]:
    """What a step folder holds, copied to the memory of the host. Collective."""
    tensors, averaged = engine.model_tensors(), engine.ema_tensors()
    files: dict[str, Mapping[str, Tensor]] = dict(finished or {schema.MODEL_NAME: tensors})
    files[OPTIMISER] = engine.optimiser_tensors()
    if averaged:
        files[schema.EMA_NAME] = averaged
    if finished is not None:
        files["state/model.safetensors"] = tensors
    return files


def _forget_old(folder: Path, keep: int) -> None:
    steps = sorted(path for path in folder.iterdir() if schema.parse_step(path.name) is not None)
    for path in steps[:-keep]:
        shutil.rmtree(path)
