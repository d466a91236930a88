"""Decoders go to a folder and come back equal to the bit, from a folder, from a checkpoint and from a hub."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fmri2img import checkpoints_schema as schema
from fmri2img.checkpoints_schema.manifest import sealed
from fmri2img.errors import DamageError, InputError
from fmri2img.files import sha256_file, write_json
from fmri2img.models.config import DecoderConfig
from fmri2img.models.decoder import MultiSubjectDecoder
from fmri2img.models.linear import RidgeDecoder
from fmri2img.models.pretrained import Pretrained, load_pretrained
from fmri2img.models.spaces import TargetSpace

VOXELS = {"subj02": 5, "subj01": 4}
GOLDEN = Path(__file__).parent / "golden"
KINDS = ["decoder", "ridge"]


@pytest.fixture
def made(make_decoder: Any, spaces: dict[str, TargetSpace]) -> Callable[[str], Pretrained]:
    """A decoder of a kind whose tensors are all different from those of a fresh one."""

    def make(kind: str) -> Pretrained:
        decoder: Pretrained = make_decoder(VOXELS) if kind == "decoder" else RidgeDecoder(VOXELS, spaces)
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for value in decoder.state_dict().values():
                value.copy_(torch.randn(value.shape, generator=generator))
        return decoder.eval()

    return make


def responses() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(3, width, generator=generator) for name, width in VOXELS.items()}


def assert_same(one: Any, other: Any) -> None:
    """Every tensor and every prediction of two decoders is equal to the bit."""
    assert type(one) is type(other)
    mine, its = one.state_dict(), other.state_dict()
    assert mine.keys() == its.keys()
    assert [name for name in mine if not torch.equal(mine[name], its[name])] == []
    assert [name for name in mine if mine[name].dtype != its[name].dtype] == []
    before, after = one.predict(responses()), other.predict(responses())
    for name in before.features:
        assert torch.equal(before.features[name], after.features[name])
    assert before.retrieval.keys() == after.retrieval.keys() == {"words"}
    assert torch.equal(before.retrieval["words"], after.retrieval["words"])


def rewrite(folder: Path, **changes: Any) -> None:
    """Change the config of an exported folder and seal it again, as somebody who knows how would."""
    document = json.loads((folder / "config.json").read_text()) | changes
    write_json(folder / "config.json", sealed(document))


@pytest.mark.parametrize("kind", KINDS)
def test_a_decoder_comes_back_from_a_folder_equal_to_the_bit(
    made: Callable[[str], Pretrained], tmp_path: Path, kind: str
) -> None:
    decoder = made(kind)
    folder = decoder.save_pretrained(tmp_path / "out")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    loaded = type(decoder).from_pretrained(str(folder))
    assert not loaded.training
    assert_same(decoder, loaded)
    assert all(
        parameter.requires_grad and parameter.device.type == "cpu" for parameter in loaded.parameters()
    )


def test_a_loaded_decoder_does_not_need_its_file_any_more(
    made: Callable[[str], Pretrained], tmp_path: Path
) -> None:
    decoder = made("decoder")
    folder = decoder.save_pretrained(tmp_path / "out")
    loaded = MultiSubjectDecoder.from_pretrained(folder)
    os.truncate(folder / "model.safetensors", 0)
    assert_same(decoder, loaded)


def test_what_was_saved_is_what_the_decoder_was_then_not_what_it_was_built_as(
    made: Callable[[str], Pretrained], tmp_path: Path
) -> None:
    decoder = made("decoder")
    assert isinstance(decoder, MultiSubjectDecoder)
    decoder.with_subjects({"subj09": 6})
    loaded = MultiSubjectDecoder.from_pretrained(decoder.save_pretrained(tmp_path / "out"))
    assert loaded.layout().voxels == {"subj09": 6}
    assert torch.equal(loaded.heads["subj09"].weight, decoder.heads["subj09"].weight)  # type: ignore[arg-type]


def test_adapters_and_kept_heads_come_back_too(made: Callable[[str], Pretrained], tmp_path: Path) -> None:
    decoder = made("decoder")
    assert isinstance(decoder, MultiSubjectDecoder)
    decoder.with_subjects({"subj09": 6}, keep=True)
    decoder.add_adapters(2)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(0.5)
    loaded = MultiSubjectDecoder.from_pretrained(decoder.save_pretrained(tmp_path / "out"))
    assert loaded.layout().voxels == VOXELS | {"subj09": 6}
    assert loaded.layout().sizes["adapter_rank"] == 2
    assert_same(decoder, loaded)


def test_the_config_holds_every_size_that_a_recipe_may_set(made: Callable[[str], Pretrained]) -> None:
    # Maps back to voxels, and what only MindEye's architectures have, are named where they are there, so that older
    # readers read what has none.
    plain = set(made("decoder").layout().sizes)
    assert plain | {"rebuild", "architecture", "entry_dropout", "maps"} == set(DecoderConfig.model_fields)


def test_a_decoder_that_the_config_cannot_describe_is_not_saved(
    made: Callable[[str], Pretrained], tmp_path: Path
) -> None:
    decoder = made("decoder")
    decoder.adapter = nn.Linear(2, 2)
    with pytest.raises(InputError, match=r"holds adapter\.bias as \(2,\), .* of its sizes as None"):
        decoder.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_over(made: Callable[[str], Pretrained], tmp_path: Path) -> None:
    decoder = made("ridge")
    (tmp_path / "empty").mkdir()
    folder = decoder.save_pretrained(tmp_path / "empty")
    with pytest.raises(InputError, match="is there already and nothing is written over"):
        decoder.save_pretrained(folder)


def test_a_decoder_of_the_other_kind_says_which_class_loads_it(
    made: Callable[[str], Pretrained], tmp_path: Path
) -> None:
    folder = made("ridge").save_pretrained(tmp_path / "out")
    with pytest.raises(InputError, match="holds a RidgeDecoder: load it with RidgeDecoder"):
        MultiSubjectDecoder.from_pretrained(folder)
    assert isinstance(load_pretrained(folder), RidgeDecoder)


@pytest.mark.parametrize("place", ["subjects", "feature_spaces", "latent", "hidden"])
def test_a_config_that_claims_more_than_its_weights_hold_allocates_nothing(
    made: Callable[[str], Pretrained], tmp_path: Path, place: str
) -> None:
    folder = made("decoder").save_pretrained(tmp_path / "out")
    document = json.loads((folder / "config.json").read_text())
    if place == "subjects":
        document["subjects"]["subj01"]["voxels"] = 10**12
    elif place == "feature_spaces":
        document["feature_spaces"]["map"]["shape"] = [10**6, 10**6]
    else:
        document["sizes"][place] = 10**12
    rewrite(folder, **document)
    with pytest.raises(DamageError, match="names a size of 1000000000000: the weights have"):
        MultiSubjectDecoder.from_pretrained(folder)


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        ({"latent": 12, "hidden": 7, "blocks": 2, "dropout": 0.3}, "the weights do not fit it"),
        ({"latent": 12, "hidden": 7, "blocks": 1}, "the weights do not fit it"),
        ({"latent": 12, "hidden": 7, "blocks": 1, "dropout": 0.3, "wings": 2}, "the weights do not fit it"),
    ],
)
def test_a_config_of_another_decoder_is_refused(
    made: Callable[[str], Pretrained], tmp_path: Path, sizes: dict[str, Any], told: str
) -> None:
    folder = made("decoder").save_pretrained(tmp_path / "out")
    rewrite(folder, sizes=sizes)
    with pytest.raises(DamageError, match=told):
        MultiSubjectDecoder.from_pretrained(folder)


def test_blocks_are_counted_before_they_are_made(made: Callable[[str], Pretrained], tmp_path: Path) -> None:
    folder = made("decoder").save_pretrained(tmp_path / "out")
    rewrite(folder, sizes={"latent": 12, "hidden": 7, "blocks": 10**9, "dropout": 0.3})
    with pytest.raises(DamageError, match="names 1000000000 blocks: the weights are 37 tensors"):
        MultiSubjectDecoder.from_pretrained(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("how", ["truncated", "flipped", "removed", "swapped"])
def test_every_damage_to_an_exported_folder_is_named(
    made: Callable[[str], Pretrained], tmp_path: Path, name: str, how: str
) -> None:
    folder = made("decoder").save_pretrained(tmp_path / "out")
    other = made("decoder")
    with torch.no_grad():
        next(other.parameters()).add_(1)
    other.save_pretrained(tmp_path / "other")
    content = (folder / name).read_bytes()
    if how == "truncated":
        (folder / name).write_bytes(content[:-9])
    elif how == "flipped":
        (folder / name).write_bytes(content[:40] + bytes([content[40] ^ 1]) + content[41:])
    elif how == "swapped":
        (folder / name).write_bytes((tmp_path / "other" / name).read_bytes())
    else:
        (folder / name).unlink()
    blamed = r"model\.safetensors" if how == "swapped" else name
    assert any(name.split(".")[0] in line or "model" in line for line in schema.verify_exported(folder))
    with pytest.raises((DamageError, InputError), match=blamed):
        MultiSubjectDecoder.from_pretrained(folder)


def test_a_newer_format_is_refused_with_the_way_out(
    made: Callable[[str], Pretrained], tmp_path: Path
) -> None:
    folder = made("ridge").save_pretrained(tmp_path / "out")
    rewrite(folder, format_version=2)
    with pytest.raises(InputError, match=r"format_version 2, newer than 1.*pip install --upgrade fmri2img"):
        RidgeDecoder.from_pretrained(folder)


def test_a_folder_of_something_else_says_what_to_pass(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"no config\.json: pass a folder made by `fmri2img checkpoint export`"
    ):
        MultiSubjectDecoder.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(InputError, match="not of an fmri2img decoder"):
        MultiSubjectDecoder.from_pretrained(tmp_path)
    with pytest.raises(InputError, match="has no revision 'main'"):
        MultiSubjectDecoder.from_pretrained(tmp_path, revision="main")


@pytest.mark.parametrize("kind", KINDS)
def test_the_golden_folder_of_format_1_loads(kind: str) -> None:
    folder = GOLDEN / f"pretrained-v1-{kind}"
    assert schema.verify_exported(folder) == []
    loaded = load_pretrained(folder)
    assert loaded.kind == kind
    assert loaded.layout().voxels == {"subj01": 2, "subj02": 3}
    assert loaded.layout().shapes == {"map": (2, 2), "words": (3,)}
    assert loaded.layout().directed == {"words"}
    config = schema.read_exported(folder)
    assert (config.recipe, config.step, config.metrics) == ("demo", 12000, {"validation/loss": 0.5})
    assert config.subjects["subj02"].dataset == "simulated"
    tensors = load_file(folder / "model.safetensors")
    assert all(torch.equal(value, tensors[name]) for name, value in loaded.state_dict().items())


class Hub(BaseHTTPRequestHandler):
    """The few answers of a hub that a download of one small model needs."""

    folder: Path
    asked: list[str]
    SHA = "0123456789abcdef0123456789abcdef01234567"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        self.asked.append(path)
        files = {file.name: file for file in self.folder.iterdir()}
        if path.startswith("/api/models/lab/decoder/revision/main"):
            siblings = [{"rfilename": name} for name in files]
            self.answer(json.dumps({"id": "lab/decoder", "sha": self.SHA, "siblings": siblings}).encode())
        elif path.startswith(f"/api/models/lab/decoder/tree/{self.SHA}"):
            entries = [
                {"type": "file", "path": name, "size": file.stat().st_size, "oid": sha256_file(file)[:40]}
                for name, file in files.items()
            ]
            self.answer(json.dumps(entries).encode())
        elif path.startswith(f"/lab/decoder/resolve/{self.SHA}/"):
            file = files[path.rsplit("/", 1)[1]]
            self.answer(file.read_bytes(), etag=sha256_file(file))
        else:
            self.answer(
                b"{}", status=404, code="RevisionNotFound" if "lab/decoder" in path else "RepoNotFound"
            )

    def answer(self, body: bytes, *, status: int = 200, etag: str = "", code: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Repo-Commit", self.SHA)
        if etag:
            self.send_header("ETag", f'"{etag}"')
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture
def hub(made: Callable[[str], Pretrained], tmp_path: Path) -> Iterator[tuple[str, type[Hub]]]:
    """A hub on this machine with `lab/decoder`, in whose folder somebody left a pickle too."""
    folder = made("decoder").save_pretrained(tmp_path / "served")
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    handler = type("OneHub", (Hub,), {"folder": folder, "asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", handler
        server.shutdown()


def load_from(endpoint: str, home: Path, name: str, **environment: str) -> dict[str, str]:
    """Load a decoder by hub name in a process of its own, which reads the hub's address when it starts."""
    script = (
        "import sys, json\n"
        "from safetensors.torch import save_file\n"
        "from fmri2img.errors import InputError\n"
        "from fmri2img.models.decoder import MultiSubjectDecoder\n"
        "try:\n"
        "    decoder = MultiSubjectDecoder.from_pretrained(sys.argv[1], **json.loads(sys.argv[3]))\n"
        "    save_file(dict(decoder.state_dict()), sys.argv[2]); print(json.dumps({'loaded': 'yes'}))\n"
        "except InputError as error:\n"
        "    print(json.dumps({'refused': str(error)}))\n"
    )
    keywords = {"revision": environment.pop("revision")} if "revision" in environment else {}
    given = {
        **os.environ,
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
        **environment,
    }
    command = [
        sys.executable,
        "-P",
        "-c",
        script,
        name,
        str(home / "loaded.safetensors"),
        json.dumps(keywords),
    ]
    home.mkdir(exist_ok=True)
    result = subprocess.run(command, env=given, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    told: dict[str, str] = json.loads(result.stdout.splitlines()[-1])
    return told


def test_a_hub_name_downloads_what_is_needed_once_and_never_a_pickle(
    hub: tuple[str, type[Hub]], made: Callable[[str], Pretrained], tmp_path: Path
) -> None:
    endpoint, server = hub
    assert load_from(endpoint, tmp_path / "home", "lab/decoder") == {"loaded": "yes"}
    loaded = load_file(tmp_path / "home" / "loaded.safetensors")
    assert all(torch.equal(value, loaded[name]) for name, value in made("decoder").state_dict().items())
    assert any(path.endswith("/model.safetensors") for path in server.asked)
    assert not [path for path in server.asked if path.endswith(".bin")]
    server.asked.clear()
    offline = load_from(endpoint, tmp_path / "home", "lab/decoder", HF_HUB_OFFLINE="1")
    assert (offline, server.asked) == ({"loaded": "yes"}, [])


def test_a_name_that_the_hub_does_not_know_is_one_line_with_the_way_out(
    hub: tuple[str, type[Hub]], tmp_path: Path
) -> None:
    endpoint, _ = hub
    for name, asked in (("lab/nothing", {}), ("lab/decoder", {"revision": "v9"})):
        told = load_from(endpoint, tmp_path / "home", name, **asked)["refused"]
        assert told.startswith(f"there is no folder {name}, and the hub did not give a model of that name (")
        assert f"run `hf download {name} --local-dir FOLDER`" in told
        assert "\n" not in told


def test_offline_says_which_folder_to_bring(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        MultiSubjectDecoder.from_pretrained("lab/decoder", cache_dir=tmp_path, local_files_only=True)
    assert "bring that FOLDER (config.json, model.safetensors, README.md) here and pass its path" in str(
        error.value
    )
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="a name on the hub reads owner/model"):
        MultiSubjectDecoder.from_pretrained("no such folder")


def test_a_download_that_holds_no_safetensors_is_refused(
    made: Callable[[str], Pretrained], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = made("decoder").save_pretrained(tmp_path / "out")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    asked: dict[str, Any] = {}

    def snapshot_download(name: str, **settings: Any) -> str:
        asked.update(settings, name=name)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(InputError, match=r"has no model\.safetensors: only safetensors are read"):
        MultiSubjectDecoder.from_pretrained("lab/decoder", revision="v1")
    assert asked["name"] == "lab/decoder" and asked["revision"] == "v1"
    assert asked["allow_patterns"] == ["config.json", "model.safetensors", "README.md"]


def test_a_pickle_under_the_name_of_the_weights_is_not_loaded(
    made: Callable[[str], Pretrained], tmp_path: Path
) -> None:
    folder = made("ridge").save_pretrained(tmp_path / "out")
    weights = folder / "model.safetensors"
    weights.write_bytes(b"\x80\x04" + b"N" * 5000 + b".")
    rewrite(folder, weights={"bytes": weights.stat().st_size, "sha256": sha256_file(weights)})
    with pytest.raises(DamageError, match="is not a safetensors file"):
        RidgeDecoder.from_pretrained(folder)
    save_file({"a": torch.zeros(2000)}, weights)
    rewrite(folder, weights={"bytes": weights.stat().st_size, "sha256": sha256_file(weights)})
    with pytest.raises(DamageError, match="the weights do not fit it"):
        RidgeDecoder.from_pretrained(folder)
