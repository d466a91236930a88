"""What every process of a group that shares one cache does.

Run as `python processes.py FOLDER LIMIT SEED TIMES FILES`, FILES being JSON rows of address, sha256 and size: asks
for files in an order of its own, checks each, and prints the most bytes that it saw in the cache.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np

from fmri2img.datasets.cache import FileCache
from fmri2img.datasets.fetch_link import Link
from fmri2img.datasets.manifest import FileEntry
from fmri2img.datasets.remote import RemoteFiles


def main(folder: str, limit: str, seed: str, times: str, rows: str) -> None:
    cache = FileCache(Path(folder), int(limit), grace=0.05)
    files, most = json.loads(rows), 0
    for number in np.random.default_rng(int(seed)).integers(len(files), size=int(times)).tolist():
        url, sha256, size = files[number]
        remote = RemoteFiles(
            url.rpartition("/")[0], cache, Link(block=4000, attempts=4, wait=0.01, timeout=2)
        )
        entry = FileEntry(file=url.rpartition("/")[2], bytes=size, sha256=sha256)
        with open(remote.locate(entry), "rb") as file:
            most = max(most, cache.used())
            assert hashlib.sha256(file.read()).hexdigest() == sha256
    print(most)


if __name__ == "__main__":
    main(*sys.argv[1:])
