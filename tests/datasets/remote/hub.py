"""What a process with HF_ENDPOINT set reads of a hub; the endpoint and being offline are read once, at import.

Run as `python hub.py FOLDER`: fetches a part of MindEye2's set, and reads a data set; prints what came as JSON.
"""

import hashlib
import json
import sys
from pathlib import Path

from fmri2img.datasets import Dataset
from fmri2img.datasets.fetch import fetch
from fmri2img.datasets.fetch_link import Link
from fmri2img.datasets.fetch_listing import list_files
from fmri2img.datasets.fetch_sources import MINDEYE2, wanted
from fmri2img.datasets.remote import open_remote


def digest(dataset: Dataset) -> str:
    """Of all training responses."""
    total = hashlib.sha256()
    for subject in dataset.subjects:
        samples = dataset.samples(subject, "train")
        for i in range(len(samples)):
            total.update(dataset.responses(samples, i).tobytes())
    return total.hexdigest()


def main(folder: Path) -> None:
    link = Link(block=5000, attempts=3, wait=0.01)
    files = list_files(wanted(MINDEYE2, subjects=["subj01"], parts=["betas", "trials", "rois"]), link)
    fetch(files, folder / "out", link=link)
    dataset = open_remote("hf://datasets/somebody/tiny", folder / "cache", 10**8, link=link)
    announced = {file.file: dict(file.announced) for file in files}
    print(json.dumps({"announced": announced, "responses": digest(dataset), "path": str(dataset.path)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
