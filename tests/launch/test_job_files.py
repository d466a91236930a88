"""Job files: what stands in them, that shells and YAML readers take them, and what is refused."""

import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from fmri2img.cli import run as command

PRETRAIN = [
    "--",
    "pretrain",
    "--data",
    "/data/it's nsd",
    "--out",
    "/runs/a b",
    "--set",
    "pretraining.lanes=24",
]
Say = Callable[..., Any]


def written(tmp_path: Path, kind: str, *flags: object, words: list[str] = PRETRAIN) -> str:
    out = tmp_path / "job"
    assert command(["launch", kind, "--out", str(out), *map(str, flags), *words]) == 0
    return out.read_text()


SCRIPTS: dict[str, list[Any]] = {
    "slurm": ["slurm", "--nodes", 3, "--gpus-per-node", 8],
    "slurm on one node": ["slurm"],
    "slurm with torchrun": ["slurm", "--nodes", 3, "--gpus-per-node", 8, "--torchrun"],
    "slurm with an interface": ["slurm", "--nodes", 2, "--interface", "ib0", "--setup", "module load cuda"],
    "ssh": ["ssh", "--hosts", "a", "user@b", "c"],
    "ssh with torchrun": ["ssh", "--hosts", "a", "b", "--torchrun", "--head-address", "10.0.0.1"],
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_bash_can_read_every_script(name: str, tmp_path: Path) -> None:
    written(tmp_path, *SCRIPTS[name])
    read = subprocess.run(["bash", "-n", tmp_path / "job"], capture_output=True, text=True, check=False)
    assert (read.returncode, read.stderr) == (0, "")
    assert (tmp_path / "job").stat().st_mode & 0o100


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing_in_any_script(name: str, tmp_path: Path) -> None:
    written(tmp_path, *SCRIPTS[name])
    read = subprocess.run(["shellcheck", tmp_path / "job"], capture_output=True, text=True, check=False)
    assert read.returncode == 0, read.stdout


def test_a_slurm_script_asks_for_what_it_uses_and_for_a_signal_before_the_end(tmp_path: Path) -> None:
    text = written(
        tmp_path, "slurm", "--nodes", 3, "--gpus-per-node", 8, "--time", "2-00:00:00", "--lead", 600
    )
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=(.*)$", text, re.MULTILINE))
    assert asked["nodes"] == "3" and asked["ntasks-per-node"] == "1" and asked["gpus-per-node"] == "8"
    assert int(asked["cpus-per-task"]) > 8
    assert (
        asked["time"] == "2-00:00:00" and asked["signal"] == "B:TERM@600" and asked["open-mode"] == "append"
    )
    assert "#SBATCH --requeue" in text
    assert text.index("#SBATCH --requeue") < text.index("\nset -u"), "sbatch reads no options after commands"


def test_the_command_reaches_the_shell_word_by_word(tmp_path: Path) -> None:
    text = written(tmp_path, "slurm", "--nodes", 3, "--gpus-per-node", 8)
    (line,) = [line for line in text.splitlines() if line.startswith("fmri2img pretrain")]
    words = shlex.split(line.removesuffix(" &"))
    assert words[: len(PRETRAIN)] == ["fmri2img", *PRETRAIN[1:]]
    assert words[words.index("--workers") + 1] == "24"
    assert words[words.index("--cluster") + 1] == "$address:$port"


def test_no_token_stands_in_a_job_file(tmp_path: Path) -> None:
    for kind, *flags in SCRIPTS.values():
        text = written(tmp_path, str(kind), *flags)
        assert not re.search(r"TOKEN=[0-9a-f]{8}", text)


def test_a_rayjob_has_what_the_operator_and_the_job_need(tmp_path: Path) -> None:
    flags = ["--nodes", 4, "--gpus-per-node", 2, "--image", "lab/fmri2img:1", "--claim", "nsd"]
    text = written(tmp_path, "kubernetes", *flags, "--wandb-secret", "wandb", "--retries", 5)
    job = yaml.safe_load(text)
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    assert spec["backoffLimit"] == 5 and spec["shutdownAfterJobFinishes"] is True
    words = shlex.split(spec["entrypoint"])
    assert words[: len(PRETRAIN)] == ["fmri2img", *PRETRAIN[1:]]
    assert words[words.index("--workers") + 1] == "8" and words[words.index("--cluster") + 1] == "auto"
    cluster = spec["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    (group,) = cluster["workerGroupSpecs"]
    assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] == 3
    for part in (cluster["headGroupSpec"], group):
        assert all(isinstance(value, str) for value in part["rayStartParams"].values())
        assert yaml.safe_load(shlex.split(part["rayStartParams"]["resources"])[0]) == {"fmri2img_worker": 2}
        (container,) = part["template"]["spec"]["containers"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == 2
        assert container["resources"]["limits"] == container["resources"]["requests"]
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in part["template"]["spec"]["volumes"]}
        assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
        assert volumes[mounts["/data"]]["persistentVolumeClaim"] == {"claimName": "nsd"}
        (key,) = [entry for entry in container["env"] if entry["name"] == "WANDB_API_KEY"]
        assert key["valueFrom"]["secretKeyRef"] == {"name": "wandb", "key": "api-key"}


@pytest.mark.parametrize(
    ("flags", "words", "told"),
    [
        (["slurm"], [], "after -- stands nothing: give one of pretrain, reconstruct with its flags"),
        (["slurm"], ["--", "demo"], "after -- stands demo"),
        (["slurm"], ["--", "pretrain", "--data", "d"], "after -- stands no command that could run"),
        (["slurm"], [*PRETRAIN, "--workers", "2"], "--workers is set by the job file"),
        (["slurm", "--nodes", "0"], PRETRAIN, "--nodes 0"),
        (["slurm", "--time", "soon"], PRETRAIN, "--time soon"),
        (["slurm", "--name", "a\n#SBATCH --uid=root"], PRETRAIN, "must be one word"),
        (["slurm", "--sbatch", "x"], PRETRAIN, "x is no option of sbatch"),
        (
            ["slurm", "--gpus-per-node", "2", "--workers-per-node", "3"],
            PRETRAIN,
            "3 workers cannot share 2 GPUs",
        ),
        (["ssh", "--hosts", "a", "a"], PRETRAIN, "a stands more than once"),
        (["ssh", "--hosts", "a", "b", "--nodes", "3"], PRETRAIN, "one node a host"),
        (["slurm", "--torchrun"], ["--", "reconstruct"], "torchrun runs pretrain, not reconstruct"),
        (
            ["ssh", "--hosts", "a", "--torchrun"],
            ["--", "reconstruct"],
            "torchrun runs pretrain, not reconstruct",
        ),
        (["kubernetes", "--image", "i", "--claim", "c", "--name", "My_Job"], PRETRAIN, "--name My_Job"),
    ],
)
def test_what_cannot_be_is_refused(
    flags: list[str], words: list[str], told: str, said: Say, tmp_path: Path
) -> None:
    result = said("launch", *flags, "--out", tmp_path / "job", *words)
    assert result.code == 2
    assert told in result.line
    assert not (tmp_path / "job").exists()
