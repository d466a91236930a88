"""Makes a reconstruction with drivers that are killed: `python killing.py TOLD.json KILLS SEED`.

Every attempt is a fork of this process, which has imported everything but computed nothing, and dies by SIGKILL a few
milliseconds after it committed some units, both drawn. Prints, as JSON, how many units each attempt had left.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from fmri2img.launch.items import ReconstructionJob
from fmri2img.launch.reconstruction import launch_reconstruction


def units(out: Path) -> int:
    """The number of committed units."""
    return len(list((out / "units").glob("unit-*")))


def attempt(told: dict[str, str], steps: int | None = None, delay: float = 0.0) -> bool:
    """Reconstruct in a fork, killed `delay` seconds after it committed `steps` units. True when it was killed."""
    out = Path(told["out"])
    before = units(out)
    child = os.fork()
    if not child:
        status = 1
        try:
            job = ReconstructionJob.model_validate_json(told["job"])
            checkpoint, data = Path(told["checkpoint"]), Path(told["data"])
            launch_reconstruction(
                job, checkpoint, data, out, place=None, progress=lambda done, total: None, threads=2
            )
            status = 0
        finally:
            os._exit(status)
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert status == 0, f"the attempt failed by itself with status {status}"
            return False
        if steps is not None and units(out) >= before + steps:
            time.sleep(delay)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return True
        time.sleep(0.0005)


def main(told: dict[str, str], kills: int, seed: int) -> None:
    draws, left = random.Random(seed), []
    for _ in range(kills):
        assert attempt(told, draws.randint(0, 3), draws.uniform(0, 0.02))
        left.append(units(Path(told["out"])))
    assert not attempt(told)
    sys.stderr.write(json.dumps(left))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()), int(sys.argv[2]), int(sys.argv[3]))
