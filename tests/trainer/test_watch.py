"""wandb is a copy of metrics.jsonl: the same lines, every step once, and training that goes on whatever it does."""

import dataclasses
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fmri2img.trainer.stages import finetune
from fmri2img.trainer.watch import Watch, read_records

Spec = Callable[..., Any]
BLOCK = 32768  # of a .wandb file, which is a LevelDB log behind seven bytes of its own


class Run:
    """Stands in for a run of wandb: what it was sent, and where it fails."""

    def __init__(self, starting_step: int = 0, fail_at: int = -1) -> None:
        self.starting_step, self.fail_at = starting_step, fail_at
        self.sent: list[tuple[int, dict[str, Any]]] = []
        self.finished = 0

    def log(self, values: dict[str, Any], step: int) -> None:
        if step == self.fail_at:
            raise BrokenPipeError("wandb is gone")
        self.sent.append((step, values))

    def finish(self) -> None:
        self.finished += 1


class Wandb:
    """Stands in for `wandb.init`: hands out runs, or fails where it is given an exception."""

    def __init__(self, *runs: Run | Exception) -> None:
        self.runs, self.told = list(runs), list[dict[str, Any]]()

    def __call__(self, **told: Any) -> Run:
        self.told.append(told)
        run = self.runs.pop(0)
        if isinstance(run, Exception):
            raise run
        return run


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Wandb]:
    """`stand_in(run, ...)`: what wandb.init gives from now on."""
    monkeypatch.delenv("WANDB_MODE", raising=False)

    def put(*runs: Run | Exception) -> Wandb:
        made = Wandb(*runs)
        monkeypatch.setattr("wandb.init", made)
        monkeypatch.setattr("wandb.teardown", lambda: None)
        return made

    return put


def with_wandb(spec: Any) -> Any:
    return dataclasses.replace(spec, wandb=True)


def warnings(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]


def test_what_wandb_is_sent_is_the_lines_of_the_file(spec: Spec, stand_in: Callable[..., Wandb]) -> None:
    run = Run()
    wandb = stand_in(run)
    finetune(with_wandb(spec("run")))
    records = read_records(Path(spec("run").run))
    assert [values for _, values in run.sent] == records
    assert [step for step, _ in run.sent] == [record["step"] for record in records]
    assert run.finished == 1
    assert wandb.told[0]["mode"] == "offline" and wandb.told[0]["resume"] == "allow"


def test_the_page_on_records_names_every_key(spec: Spec) -> None:
    finetune(spec("run", steps=2, pictures_every=2, rates={"heads": 0.5}))
    page = (Path(__file__).parents[2] / "docs" / "training-records.md").read_text()
    general = {"words": "SPACE", "pixels-2": "SPACE", "mse": "KIND", "contrastive": "KIND", "heads": "PART"}
    for record in read_records(Path(spec("run").run)):
        for key in record:
            name = "/".join(general.get(part, part) for part in key.split("/"))
            assert f"`{name}`" in page, key


def test_a_picture_is_sent_as_a_picture(spec: Spec, stand_in: Callable[..., Wandb]) -> None:
    run = Run()
    stand_in(run)
    finetune(with_wandb(spec("run", steps=2, pictures_every=2)))
    (sent,) = [values for _, values in run.sent if "pictures/validation" in values]
    assert type(sent["pictures/validation"]).__name__ == "Image"
    assert sent["pictures/validation"].format == "png"


def test_a_resumed_offline_run_is_told_everything_from_the_start_under_the_same_id(
    spec: Spec, stand_in: Callable[..., Wandb], faults: Any, killed: type[BaseException]
) -> None:
    before, after = Run(), Run()
    wandb = stand_in(before, after)
    with pytest.raises(killed):
        finetune(with_wandb(spec("run")), listener=faults.kill_at(5))
    old = Path(spec("run").run) / "wandb" / f"offline-run-1-{wandb.told[0]['id']}"
    old.mkdir(parents=True)
    finetune(with_wandb(spec("run")))
    assert wandb.told[0]["id"] == wandb.told[1]["id"]
    assert [values for _, values in after.sent] == read_records(Path(spec("run").run))
    assert not old.exists()  # all of it is in the new one


@pytest.mark.parametrize("server", [3, 4, 5])
def test_a_resumed_online_run_is_sent_no_step_twice_and_what_it_missed(
    spec: Spec,
    stand_in: Callable[..., Wandb],
    faults: Any,
    killed: type[BaseException],
    monkeypatch: pytest.MonkeyPatch,
    server: int,
) -> None:
    """Killed at step 5, resumed from step 4; the server has steps up to `server`."""
    before, after = Run(), Run(starting_step=server + 1)
    stand_in(before, after)
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(killed):
        finetune(with_wandb(spec("run")), listener=faults.kill_at(5))
    finetune(with_wandb(spec("run")))
    late = [record for record in read_records(Path(spec("run").run)) if record["step"] > server]
    assert [values for _, values in after.sent] == late
    assert {step for step, _ in before.sent if step <= server} | {step for step, _ in after.sent} == set(
        range(9)
    )


def test_a_wandb_that_fails_is_told_of_once_and_training_goes_on(
    spec: Spec, stand_in: Callable[..., Wandb], capsys: pytest.CaptureFixture[str]
) -> None:
    whole = finetune(spec("whole"))
    run = Run(fail_at=4)
    stand_in(run)
    done = finetune(with_wandb(spec("run")))
    (line,) = warnings(capsys)
    assert "wandb failed at step 4 (BrokenPipeError: wandb is gone): training goes on without it" in line
    assert [step for step, _ in run.sent] == [0, 1, 2, 3, 3]
    assert (done / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    steps = [r["step"] for r in read_records(Path(spec("run").run)) if "train/loss" in r]
    assert steps == list(range(1, 9))


def test_a_wandb_that_does_not_start_is_told_of_once(
    tmp_path: Path, stand_in: Callable[..., Wandb], capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in(RuntimeError("two\nlines"))
    watch = Watch(tmp_path, first_step=0, total=2, config={}, wandb=True)
    watch.record(1, {"train/loss": 1.0})
    watch.close()
    assert warnings(capsys) == [
        "warning: wandb does not start (RuntimeError: two lines): training goes on without it"
    ]
    assert [record["step"] for record in read_records(tmp_path)] == [1]


def test_without_a_network_an_online_run_is_kept_offline(
    tmp_path: Path,
    stand_in: Callable[..., Wandb],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = Run()
    wandb = stand_in(TimeoutError("no answer"), run)
    monkeypatch.setenv("WANDB_MODE", "online")
    watch = Watch(tmp_path, first_step=0, total=2, config={}, wandb=True)
    watch.record(1, {"train/loss": 1.0})
    watch.close()
    (line,) = warnings(capsys)
    assert "wandb cannot be reached (TimeoutError: no answer): this run is kept offline" in line
    assert f"`wandb sync {tmp_path}/wandb/offline-run-*`" in line
    assert [told["mode"] for told in wandb.told] == ["online", "offline"]
    assert [step for step, _ in run.sent] == [1] and run.finished == 1


def test_a_wandb_that_starts_neither_online_nor_offline_is_told_of_once(
    tmp_path: Path,
    stand_in: Callable[..., Wandb],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stand_in(TimeoutError("no answer"), OSError("disk full"))
    monkeypatch.setenv("WANDB_MODE", "online")
    watch = Watch(tmp_path, first_step=0, total=2, config={}, wandb=True)
    watch.record(1, {"train/loss": 1.0})
    watch.close()
    (line,) = warnings(capsys)
    assert "neither online (TimeoutError: no answer) nor offline (OSError: disk full)" in line


def test_a_wandb_that_does_not_finish_is_told_of(
    tmp_path: Path, stand_in: Callable[..., Wandb], capsys: pytest.CaptureFixture[str]
) -> None:
    class Stuck(Run):
        def finish(self) -> None:
            raise TimeoutError

    stand_in(Stuck())
    Watch(tmp_path, first_step=0, total=2, config={}, wandb=True).close()
    assert warnings(capsys) == ["warning: wandb did not finish (TimeoutError): metrics.jsonl has every step"]


def rows(folder: Path) -> list[dict[str, Any]]:
    """The history that the offline runs of a run folder hold, by wandb's own records."""
    from wandb.proto import wandb_internal_pb2

    history: Any = wandb_internal_pb2
    found = []
    for path in sorted((folder / "wandb").glob("offline-run-*/*.wandb")):
        for data in _log_records(path.read_bytes()):
            record = history.Record.FromString(data)
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                found.append(
                    {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
                )
    return found


def _log_records(data: bytes) -> list[bytes]:
    found, whole, place = [], b"", 7
    while place + 7 <= len(data):
        left = BLOCK - place % BLOCK
        if left < 7:
            place += left
            continue
        _, size, kind = struct.unpack("<IHB", data[place : place + 7])
        whole += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            found.append(whole)
            whole = b""
    return found


def without_wandb() -> dict[str, str]:
    """The environment for a process of its own: wandb's names the service of this one, which would be used."""
    return {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}


KILLED = """
import json, os, signal, sys
from pathlib import Path
from fmri2img.trainer.stages import StageSpec, finetune

told = json.loads(Path(sys.argv[1]).read_text())
told["subjects"] = tuple(told["subjects"])

def kill(record):
    if record["step"] == int(sys.argv[2]) and "train/loss" in record:
        os.kill(os.getpid(), signal.SIGKILL)

finetune(StageSpec(**told), listener=kill)
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # what wandb warns of is its own affair
def test_after_two_kills_wandbs_own_files_hold_every_step_once_with_the_values_of_the_lines(
    spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    wanted = with_wandb(spec("run", pictures_every=8))
    (tmp_path / "spec.json").write_text(json.dumps(dataclasses.asdict(wanted)))
    (tmp_path / "killed.py").write_text(KILLED)
    for step in ("5", "7"):
        command = [sys.executable, "-P", str(tmp_path / "killed.py"), str(tmp_path / "spec.json"), step]
        done = subprocess.run(command, env=without_wandb(), capture_output=True, check=False)
        assert done.returncode == -9, done.stderr
    finetune(wanted)
    lines: dict[int, dict[str, Any]] = {}
    for record in read_records(Path(wanted.run)):
        lines.setdefault(record["step"], {}).update(record)
    told = rows(Path(wanted.run))
    assert [row["_step"] for row in told] == sorted(lines) == list(range(9))
    for row in told:
        line = lines[row["step"]]
        assert {name for name in row if not name.startswith(("_", "pictures/"))} == {
            name for name in line if not name.startswith("pictures/")
        }
        assert all(row[name] == line[name] for name in line if not name.startswith("pictures/"))
    assert any(name.startswith("pictures/validation") for name in told[-1])
    names = [path.name.split("-")[-1] for path in (Path(wanted.run) / "wandb").glob("offline-run-*")]
    assert names == [(Path(wanted.run) / "wandb-id").read_text()]


REFUSED = """
import sys
from pathlib import Path
from fmri2img.trainer import tracking
from fmri2img.trainer.watch import Watch

tracking.START_SECONDS = 2.0
watch = Watch(Path(sys.argv[1]), first_step=0, total=2, config={}, wandb=True)
watch.record(1, {"train/loss": 1.0})
watch.close()
"""


@pytest.mark.slow
def test_an_address_that_refuses_is_survived_by_wandb_itself(tmp_path: Path) -> None:
    # wandb reads its environment once in a process.
    there = {"MODE": "online", "SILENT": "true", "API_KEY": "0" * 40, "BASE_URL": "http://127.0.0.1:9"}
    environment = without_wandb() | {f"WANDB_{name}": value for name, value in there.items()}
    command = [sys.executable, "-P", "-c", REFUSED, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stdout.splitlines() if line.startswith("warning: ")]
    assert len(told) == 1 and "127.0.0.1:9" in told[0] and "kept offline" in told[0]
    assert [row["step"] for row in rows(tmp_path)] == [1]
