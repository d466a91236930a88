"""How long the field's eight metrics of pictures take without the networks' forward passes, and in how much memory.

python benchmarks/metrics.py --pictures 1000 --threads 1

Pictures and features are random, related by a tenth, of the sizes that `--protocol mindeye2` compares; a metric's
figures are the seconds that it took, with its interval, by the clock and by the processor. Prints JSON.
"""

import argparse
import json
import resource
import time
from collections.abc import Callable

import numpy as np
import torch

from fmri2img.evaluation.intervals import estimate
from fmri2img.evaluation.metrics import correlation_distance, two_way_identification
from fmri2img.evaluation.metrics_pictures import pixcorr, ssim
from fmri2img.evaluation.protocols import protocol

FEATURES = {
    "alexnet2": 192 * 31 * 31,
    "alexnet5": 256 * 15 * 15,
    "inception": 2048,
    "clip": 768,
    "effnet": 1280,
    "swav": 2048,
}


def timed(work: Callable[[], np.ndarray]) -> dict[str, float]:
    """Seconds by the clock and of the processor."""
    clock, processor = time.perf_counter(), time.process_time()
    scores = work()
    estimate(scores, np.arange(len(scores)))
    return {
        "seconds": round(time.perf_counter() - clock, 2),
        "processor_seconds": round(time.process_time() - processor, 2),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rng, n = np.random.default_rng(0), given.pictures
    prepare = protocol("mindeye2").prepare_pixels()
    made = rng.integers(0, 256, (n, 3, 256, 256), dtype=np.uint8)
    seen = rng.integers(0, 256, (n, 3, 425, 425), dtype=np.uint8)
    found = {
        "pixcorr": timed(lambda: pixcorr(made, seen, prepare=prepare)),
        "ssim": timed(lambda: ssim(made, seen, prepare=prepare, linear=True)),
    }
    for name, size in FEATURES.items():
        x, y = (torch.from_numpy(rng.standard_normal((n, size), dtype=np.float32)) for _ in range(2))
        x += 0.1 * y
        score = correlation_distance if name in ("effnet", "swav") else two_way_identification
        found[name] = timed(lambda score=score, x=x, y=y: score(x, y))  # type: ignore[misc]
    total = {key: round(sum(part[key] for part in found.values()), 2) for key in found["ssim"]}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(json.dumps({"pictures": n, "metrics": found, "all": total, "peak_gigabytes": round(peak, 2)}))


if __name__ == "__main__":
    main()
