"""Trains the runs of a specification with processes that are killed: `python killing.py SPEC.json KILLS SEED`.

Every attempt is a fork of this process, which has imported everything but computed nothing, and dies by SIGKILL a few
milliseconds after it logged some steps, both drawn. Prints, as JSON, which step each attempt had logged last.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

from fmri2img.trainer.stages import StageSpec, finetune
from fmri2img.trainer.watch import read_records


def last_step(spec: StageSpec) -> int:
    records = read_records(Path(spec.run))
    return records[-1]["step"] if records else 0


def attempt(spec: StageSpec, steps: int | None = None, delay: float = 0.0) -> bool:
    """Run in a fork, killed `delay` seconds after it logged `steps` more steps. True when it was killed."""
    first = time.time()
    child = os.fork()
    if not child:
        status = 1
        try:
            finetune(spec)
            status = 0
        finally:
            os._exit(status)
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert status == 0, f"the attempt failed by itself with status {status}"
            return False
        logged = [r["step"] for r in read_records(Path(spec.run)) if r["time"] > first]
        if steps is not None and len(set(logged)) >= steps:
            time.sleep(delay)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return True
        time.sleep(0.001)


def main(told: Any, kills: int, seed: int) -> None:
    told["subjects"] = tuple(told["subjects"])
    whole = StageSpec(**{**told, "run": told["run"] + "-whole"})
    broken = StageSpec(**{**told, "run": told["run"] + "-broken"})
    assert not attempt(whole)
    draws, logged = random.Random(seed), []
    for _ in range(kills):
        assert attempt(broken, draws.randint(1, 9), draws.uniform(0, 0.03))
        logged.append(last_step(broken))
    assert not attempt(broken)
    print(json.dumps({"killed_at": logged}))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()), int(sys.argv[2]), int(sys.argv[3]))
