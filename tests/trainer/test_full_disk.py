"""A disk that fills, or becomes read-only, in a save: the last good checkpoint stays, and the run goes on from it."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import SafetensorError

from fmri2img import checkpoints_schema as schema
from fmri2img.errors import StoppedError
from fmri2img.trainer import collectives
from fmri2img.trainer.stages import StageSpec, finetune
from fmri2img.trainer.state import Identity, write_step
from fmri2img.trainer.watch import Watch, read_records

Spec = Callable[..., StageSpec]
COMMAND = Path(sys.executable).with_name("fmri2img")
NAMESPACE = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-rm"]


def identity() -> Identity:
    subject = schema.SubjectRecord(voxels=3, dataset="linear", fingerprint="a" * 64)
    space = schema.FeatureSpaceRecord(shape=(2,), dtype="float32", extractor={"kind": "none"})
    return Identity({"lanes": 2}, "tiny", {"subj01": subject}, {"words": space})


def write(folder: Path, step: int) -> Path:
    files = {
        "model.safetensors": {"weight": torch.full((4, 3), float(step))},
        "state/optimiser.safetensors": {"count": torch.tensor(float(step))},
    }
    return write_step(folder, step, schema.new_token(), files, identity(), metrics={"loss": 0.5})


class Disk:
    """Counts what is made durable, and takes no more from a chosen time on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.synced, self.last = 0, -1
        self.real = os.fsync
        monkeypatch.setattr(os, "fsync", self.sync)

    def fill_at(self, number: int) -> None:
        """Fail from the fsync of that number on, counted from now."""
        self.synced, self.last = 0, number

    def empty(self) -> None:
        """Take everything again."""
        self.synced, self.last = 0, -1

    def sync(self, handle: int) -> None:
        self.synced += 1
        if 0 <= self.last < self.synced:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.real(handle)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def test_a_disk_that_fills_at_any_moment_of_a_save_leaves_the_last_good_checkpoint(
    tmp_path: Path, disk: Disk
) -> None:
    older = write(tmp_path, 10)
    disk.empty()
    write(tmp_path / "counted", 20)
    moments = disk.synced
    assert moments > 10
    for moment in range(moments):
        disk.fill_at(moment)
        with pytest.raises(StoppedError) as error:
            write(tmp_path, 20)
        assert error.value.exit_code == 75
        assert str(error.value).startswith(
            f"{tmp_path} did not take the checkpoint of step 20: No space left on device. Free space there "
            "and run the same command: it goes on from step-000000"
        )
        found = schema.find_latest(tmp_path)
        assert found is not None and found.passed_over == ()
        committed = moment == moments - 1  # the fsync after the rename
        assert found.manifest.step == (20 if committed else 10)
        assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    disk.empty()
    assert schema.verify(write(tmp_path, 30)) == []
    assert schema.verify(older) == []


def test_a_disk_too_full_for_any_checkpoint_says_that_the_run_begins_anew(tmp_path: Path, disk: Disk) -> None:
    disk.fill_at(0)
    with pytest.raises(StoppedError, match="run the same command: none is committed yet, so it begins anew"):
        write(tmp_path / "run", 10)
    assert list((tmp_path / "run").iterdir()) == []


def test_a_full_disk_under_damaged_checkpoints_promises_nothing(tmp_path: Path, disk: Disk) -> None:
    (write(tmp_path, 10) / "config.json").unlink()
    disk.fill_at(0)
    with pytest.raises(StoppedError, match="but none of its checkpoints can be read whole now"):
        write(tmp_path, 20)


def test_the_other_ranks_stop_resumable_too(monkeypatch: pytest.MonkeyPatch) -> None:
    story = ("StoppedError", "runs/a did not take the checkpoint of step 20", 75)
    monkeypatch.setattr(collectives, "gather_objects", lambda value: [story, None])
    with pytest.raises(StoppedError, match="rank 0 failed with StoppedError: runs/a did not take"):
        collectives.fail_together(None)


def test_weights_that_the_disk_does_not_take_are_a_full_disk_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **settings: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: Read-only file system (os error 30)")

    write(tmp_path, 10)
    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(StoppedError, match=r"Read-only file system\. Make it writable .* from step-00000010"):
        write(tmp_path, 20)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000010"]


def test_a_run_on_a_disk_that_filled_goes_on_to_the_same_end(
    spec: Spec, disk: Disk, faults: Any, tmp_path: Path
) -> None:
    whole = finetune(spec("whole"))
    filled: list[int] = []

    def fill(record: dict[str, Any]) -> None:
        if record["step"] == 5 and not filled:
            filled.append(5)
            disk.fill_at(3)

    with pytest.raises(StoppedError, match=r"did not take the checkpoint of step [46]"):
        finetune(spec("run"), listener=fill)
    disk.empty()
    end = finetune(spec("run"))
    for name in ("model.safetensors", "state/optimiser.safetensors"):
        assert (end / name).read_bytes() == (whole / name).read_bytes()
    trained = [record["step"] for record in read_records(tmp_path / "run") if "train/loss" in record]
    assert trained == list(range(1, 9))


def test_records_that_the_disk_does_not_take_stop_the_run_resumable(tmp_path: Path) -> None:
    watch = Watch(tmp_path, first_step=0, total=9, config={})
    watch.record(1, {"train/loss": 0.5})
    watch.file.close()
    watch.file = open("/dev/full", "a", buffering=1)  # noqa: SIM115 closed by close()
    with pytest.raises(
        StoppedError, match=r"metrics\.jsonl took no record of step 2: No space left on device"
    ):
        watch.record(2, {"train/loss": 0.4})
    watch.close()
    assert [record["step"] for record in read_records(tmp_path)] == [1]


SCRIPT = """
set -u
checkpoints=$1/run/checkpoints
mounted=$1/run
[ $3 = read-only ] && mounted=$checkpoints  # there nothing else is open for writing
mkdir -p $mounted
mount -t tmpfs -o size=$2 tmpfs $mounted || exit 99
if [ $3 = read-only ]; then
    (until [ -e $checkpoints/step-00000006 ]; do :; done
     until mount -o remount,ro $mounted 2>/dev/null; do :; done) &
fi
shift 3
"$@"
echo "code $?"
echo "left $(ls -A $checkpoints | grep -v '^step-' | wc -l)"
"$0" checkpoint verify $checkpoints
echo "verify $?"
mount -o remount,rw,size=64m $mounted
"$@"
echo "code $?"
cp -r $checkpoints "$KEPT"
"""


def can_mount() -> bool:
    tried = subprocess.run(
        [*NAMESPACE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, check=False
    )
    return tried.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize(("trouble", "size"), [("full", "300k"), ("read-only", "64m")])
def test_a_real_disk_in_trouble_stops_the_command_with_75_and_the_same_command_goes_on(
    data: Path,
    recipe: Callable[..., dict[str, Any]],
    spec: Spec,
    tmp_path: Path,
    trouble: str,
    size: str,
) -> None:
    try:
        if not can_mount():
            pytest.skip("no file system can be mounted in a namespace of its own here")
    except FileNotFoundError:
        pytest.skip("there is no unshare here")
    settings = {"steps": 120, "keep": 99, "checkpoint_every": 2, "validate_every": 120, "log_every": 50}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(recipe(**settings)))
    flags = ["--subject", "subj01", "--baseline", "scratch", "--recipe", str(tmp_path / "tiny.yaml")]
    flags += ["--skip-preflight"]  # it would not begin on so small a disk
    command = [str(COMMAND), "finetune", "--data", str(data), "--out", str(tmp_path / "run"), *flags]
    script = [*NAMESPACE, "bash", "-c", SCRIPT, str(COMMAND), str(tmp_path), size, trouble, *command]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "KEPT": str(tmp_path / "kept")}
    result = subprocess.run(script, capture_output=True, text=True, timeout=300, env=environment, check=False)
    said = result.stdout + result.stderr
    assert [line for line in result.stdout.splitlines() if line.startswith("code")] == [
        "code 75",
        "code 0",
    ], said
    assert "verify 0" in result.stdout, said
    why = {"full": "No space left on device. Free space there", "read-only": "Read-only file system. Make it"}
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("fmri2img: error:")]
    assert why[trouble] in line and "the last good one" in line
    if trouble == "full":  # on a read-only disk what was half written can only go at the next start
        assert "left 0" in result.stdout
    kept = schema.find_latest(tmp_path / "kept")
    assert kept is not None and kept.manifest.step == 120
    assert [path.name for path in (tmp_path / "kept").iterdir() if path.name.startswith(".")] == []
    end = finetune(spec("quiet", **settings))
    for name in ("model.safetensors", "state/optimiser.safetensors"):
        assert (kept.path / name).read_bytes() == (end / name).read_bytes()
