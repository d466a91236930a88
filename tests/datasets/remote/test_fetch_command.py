"""`fmri2img data fetch`: the terms come first, then one command does it all."""

import io
import json
from pathlib import Path
from typing import Any

import fsspec.config
import pytest

from fmri2img.cli import run
from fmri2img.datasets import fetch_terms

DESIGN = "nsddata/experiments/nsd/nsd_expdesign.mat"
FILES = {
    DESIGN: b"design" * 500,
    "nsddata/experiments/nsd/nsd_stim_info_merged.csv": b"table" * 300,
    "nsddata/ppdata/subj01/behav/responses.tsv": b"responses" * 100,
}
COMMAND = ["data", "fetch", "nsd"]
CHOICE = ["--subjects", "subj01", "--parts", "design", "--mirror", "s3://nsd"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def home(tmp_path: Path, server: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user who has accepted nothing, at no terminal, and a bucket."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv(fetch_terms.ACCEPT, raising=False)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    settings = {"anon": True, "endpoint_url": server.address, "client_kwargs": {"region_name": "us-east-1"}}
    monkeypatch.setitem(fsspec.config.conf, "s3", settings)
    server.files.update({f"nsd/{name}": data for name, data in FILES.items()})
    return tmp_path


def fetched(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in FILES if (out / name).exists()}


def test_without_the_terms_nothing_is_asked_for(
    home: Path, server: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*COMMAND, str(home / "out"), *CHOICE]) == 2
    said = capsys.readouterr().err.strip()
    assert len(said.splitlines()) == 1
    assert "not accepted yet" in said
    assert fetch_terms.ADDRESS in said
    assert "--accept-nsd-terms" in said
    assert server.requests == []


def test_the_flag_accepts_once(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*COMMAND, str(home / "out"), *CHOICE, "--accept-nsd-terms"]) == 0
    assert fetch_terms.ADDRESS in capsys.readouterr().out
    record = json.loads((home / "config" / "fmri2img" / "nsd-terms.json").read_text())
    assert record["version"] == fetch_terms.VERSION
    assert record["how"] == "flag"
    assert record["accepted"].startswith("20")
    assert fetched(home / "out") == FILES
    assert run([*COMMAND, str(home / "again"), *CHOICE]) == 0
    assert fetch_terms.ADDRESS not in capsys.readouterr().out


def test_the_environment_accepts_for_batch_jobs(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(fetch_terms.ACCEPT, "1")
    assert run([*COMMAND, str(home / "out"), *CHOICE]) == 0
    assert fetched(home / "out") == FILES


@pytest.mark.parametrize(("answer", "code"), [("yes", 0), ("n", 2), ("", 2)])
def test_at_a_terminal_the_question_is_put(
    home: Path, monkeypatch: pytest.MonkeyPatch, answer: str, code: int
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("builtins.input", lambda _: answer)
    assert run([*COMMAND, str(home / "out"), *CHOICE]) == code
    assert fetch_terms.accepted() == (code == 0)


def test_terms_of_another_version_are_asked_for_again(home: Path) -> None:
    path = fetch_terms.accept("flag")
    path.write_text(path.read_text().replace(f'"version": {fetch_terms.VERSION}', '"version": 0'))
    assert not fetch_terms.accepted()
    path.write_text("{")
    assert not fetch_terms.accepted()


def test_a_dry_run_lists_and_fetches_nothing(
    home: Path, server: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*COMMAND, str(home / "out"), *CHOICE, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert f"3.0 kB  {DESIGN}" in said
    assert "3 files, 5.4 kB; to fetch: 3 files, 5.4 kB; free in" in said
    assert "timeseries (preprocessed volumes" in said
    assert not (home / "out").exists()
    assert all(server.sent(f"nsd/{name}") == 0 for name in FILES)


def test_a_second_command_finds_all_of_it_there(
    home: Path, server: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    fetch_terms.accept("flag")
    run([*COMMAND, str(home / "out"), *CHOICE])
    before = {name: server.sent(f"nsd/{name}") for name in FILES}
    capsys.readouterr()
    assert run([*COMMAND, str(home / "out"), *CHOICE]) == 0
    assert "0 files fetched, 3 verified" in capsys.readouterr().out
    assert {name: server.sent(f"nsd/{name}") for name in FILES} == before
