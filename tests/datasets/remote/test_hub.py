"""The Hugging Face hub is read like any other address."""

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fmri2img.datasets import Dataset

SCRIPT = Path(__file__).parent / "hub.py"
SET = "datasets/pscotti/mindeyev2"


def on_hub(server: Any, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    settings = {
        "HF_ENDPOINT": server.address,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(folder),
    }
    command = [sys.executable, "-P", str(SCRIPT), str(folder)]
    return subprocess.run(
        command,
        env=os.environ | settings | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def hub(server: Any, built: Path) -> Any:
    generator = np.random.default_rng(2)
    names = [
        "betas_all_subj01_fp32_renorm.hdf5",
        "betas_all_subj02_fp32_renorm.hdf5",
        "brain_region_masks.hdf5",
    ]
    names += [f"wds/subj01/{part}/{n}.tar" for part in ("train", "new_test", "test") for n in (0, 1)]
    for name in names:
        server.files[f"{SET}/{name}"] = generator.bytes(9000 if name.startswith("betas") else 1000)
    server.publish(built, "datasets/somebody/tiny")
    return server


def test_a_set_is_fetched_and_a_data_set_is_read(hub: Any, built: Path, tmp_path: Path) -> None:
    done = on_hub(hub, tmp_path)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    betas = "betas_all_subj01_fp32_renorm.hdf5"
    expected = [betas, "brain_region_masks.hdf5"]
    expected += [f"wds/subj01/{part}/{n}.tar" for part in ("train", "new_test") for n in (0, 1)]
    assert sorted(said["announced"]) == sorted(expected)
    assert said["announced"][betas] == {"sha256": hashlib.sha256(hub.files[f"{SET}/{betas}"]).hexdigest()}
    for name in expected:
        assert (tmp_path / "out" / name).read_bytes() == hub.files[f"{SET}/{name}"]
    assert hub.sent(f"{SET}/{betas}") == 9000
    specification = importlib.util.spec_from_file_location("hub_script", SCRIPT)
    assert specification is not None and specification.loader is not None
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)
    assert said["responses"] == script.digest(Dataset.open(built))
    assert said["path"] == "hf://datasets/somebody/tiny"


def test_a_hub_that_may_not_be_reached_is_said_at_once(hub: Any, tmp_path: Path) -> None:
    done = on_hub(hub, tmp_path, HF_HUB_OFFLINE="1")
    assert done.returncode != 0
    assert "InputError" in done.stderr.splitlines()[-1]
    assert "HF_HUB_OFFLINE is set" in done.stderr
    assert hub.requests == []


def test_a_set_that_is_not_on_the_hub_is_named(server: Any, tmp_path: Path) -> None:
    done = on_hub(server, tmp_path)
    last = done.stderr.splitlines()[-1]
    assert "does not exist: check the address" in last
    assert SET in last
