"""Clusters that are started for a job: where they listen, what they leave, what their workers see."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fmri2img.errors import InputError
from fmri2img.launch.cluster import Place

ROOT = Path(__file__).resolve().parents[2]

# In a process of its own: Ray starts once in a process, and what stays behind is seen from outside.
STARTED = """
import json, os, sys, tempfile
import psutil
made, really = [], tempfile.mkdtemp
def remembered(*args, **settings):
    made.append(really(*args, **settings))
    return made[-1]
tempfile.mkdtemp = remembered
from fmri2img.launch.cluster import Place, cluster
with cluster(Place(2, int(sys.argv[1]))):
    import ray
    children = psutil.Process().children(recursive=True)
    listens = {c.laddr.ip for p in children for c in p.net_connections("tcp") if c.status == "LISTEN"}
    @ray.remote(resources={"fmri2img_worker": 1})
    def where():
        import time
        time.sleep(0.5)
        return ray.get_runtime_context().get_node_id()
    told = {
        "addresses": sorted({node["NodeManagerAddress"] for node in ray.nodes()}),
        "nodes": len(set(ray.get([where.remote(), where.remote()]))),
        "listens": sorted(listens),
        "names": [" ".join(p.cmdline()) for p in children],
    }
gone, alive = psutil.wait_procs(children, timeout=10)
told["alive"] = [p.name() for p in alive if p.status() != psutil.STATUS_ZOMBIE]
told["made"], told["left"] = len(made), [path for path in made if os.path.exists(path)]
print(json.dumps(told))
"""


@pytest.mark.slow
@pytest.mark.parametrize("nodes", [0, 2])
def test_a_cluster_listens_on_loopback_and_leaves_neither_processes_nor_folders(nodes: int) -> None:
    result = subprocess.run(
        [sys.executable, "-P", "-c", STARTED, str(nodes)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    told = json.loads(result.stdout.splitlines()[-1])
    assert told["addresses"] == ["127.0.0.1"]
    assert set(told["listens"]) <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
    assert told["nodes"] == max(1, nodes)
    dashboards = [name for name in told["names"] if "dashboard/dashboard.py" in name]
    assert all("--disable-frontend" in name for name in dashboards)
    assert told["alive"] == []
    assert told["made"] and told["left"] == []


@pytest.mark.slow
@pytest.mark.usefixtures("two_workers")
def test_a_worker_started_in_the_source_tree_is_not_fooled_by_our_datasets_folder() -> None:
    import importlib.metadata

    import ray

    assert Path.cwd() == ROOT, "this test is about the repository's root as the working directory"

    def look() -> tuple[str, bool]:
        import fmri2img.launch.pretraining  # noqa: F401  as Ray Train does, before the training function runs
        from fmri2img.launch.cluster import leave_source_tree

        leave_source_tree()
        from transformers.utils.import_utils import is_datasets_available

        return os.getcwd(), is_datasets_available()

    installed = "datasets" in {d.metadata["Name"] for d in importlib.metadata.distributions()}
    cwd, seen = ray.get(ray.remote(look).remote())
    assert Path(cwd) == ROOT
    assert seen == installed


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"workers": 0}, "--workers 0"),
        ({"workers": 3, "emulate_nodes": 2}, "use a multiple of 2"),
        ({"workers": 2, "emulate_nodes": -2}, "--emulate-nodes -2"),
        ({"workers": 2, "emulate_nodes": 2, "address": "auto"}, "give one of them"),
    ],
)
def test_places_that_cannot_be_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        Place(**settings)
