"""`fmri2img status`: what a run does."""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional


@dataclass(frozen=True)
class Status:
    """Say what a run does, from its folder alone: step, rate, time left, workers, last checkpoint, faults."""

    run_folder: Positional[Path]
    """the run folder; any machine that sees it may ask"""
    json: bool = False
    """print JSON"""

    def run(self) -> None:
        from fmri2img.launch.status import read_status, show_status

        status = read_status(self.run_folder)
        if self.json:
            print(status.model_dump_json(indent=2))
        else:
            show_status(status)
