"""The way of docs/coming-from-mindeye.md, step by step: a MindEye2 folder and a last.pth, to pictures and scores."""

import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from fmri2img import checkpoints_schema as schema
from fmri2img.cli import run
from fmri2img.datasets import add_feature_space
from fmri2img.models.loading import load_decoder

PAGE = Path(__file__).parents[3] / "docs" / "coming-from-mindeye.md"
SHAPES = {"bigg-tokens": (6, 24), "vae-latents": (4, 28, 28), "convnext-maps": (49, 512)}
SMALL = {
    "precision": "float32",
    "steps": 2,
    "global_batch": 8,
    "checkpoint_every": 2,
    "offload": "none",
}
EIGHT = ",".join(f"subj0{n}" for n in range(1, 9))
SMALLER = {EIGHT: "subj04,subj08", EIGHT.removeprefix("subj01,"): "subj08,other", "subj01": "subj04"}
STAND_IN: dict[str, Any] = {
    "spaces": {name: {"extractor": {"kind": "imported"}} for name in SHAPES},
    "generator": {"kind": "vae", "model": "simulation/vae", "latents": "vae-latents"},
    "pretraining": SMALL | {"lanes": 1},
    "finetuning": SMALL,
}


def features(name: str, shape: tuple[int, ...]) -> Any:
    """What stands for features that a network would make of pictures."""

    def compute(pictures: Any, captions: Any) -> np.ndarray:
        rows = [np.random.default_rng(int(np.sum(picture))).normal(size=shape) for picture in pictures]
        return np.stack(rows).astype(np.float32)

    return compute


def commands() -> list[str]:
    """The page's commands, in order, lines joined."""
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.DOTALL)
    text = "\n".join(blocks).replace("\\\n", " ")
    return [line.split("#")[0].strip() for line in text.splitlines() if line.startswith("fmri2img")]


@pytest.fixture
def at_home(
    mindeye2: Any, mindeye_published: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A folder with a small mindeyev2, a train_logs/…/last.pth of heads of 7 and 9 voxels, and small settings."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mindeyev2").symlink_to(mindeye2.root)
    weights, _ = mindeye_published.published("mindeye2")
    whole = {"epoch": 1, "model_state_dict": weights, "optimizer_state_dict": {}, "lrs": []}
    logs = tmp_path / "train_logs" / "final_multisubject_subj01"
    logs.mkdir(parents=True)
    torch.save(whole, logs / "last.pth")
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(STAND_IN))
    return tmp_path


def test_the_page_is_followed_from_a_mindeye2_folder_and_a_last_pth_to_scores(at_home: Path) -> None:
    done = []
    for command in commands():
        # The page names published subjects; the small folder has two of them, and the file heads of 7 and 9 voxels.
        words = [SMALLER.get(word, word) for word in command.split()[1:]]
        done.append(" ".join(words[:2]))
        if words[0] == "features":
            for name, shape in SHAPES.items():
                add_feature_space(
                    at_home / "data/nsd",
                    name=name,
                    shape=shape,
                    dtype="float32",
                    extractor={"kind": "imported"},
                    compute=features(name, shape),
                )
            continue
        if words[1] == "import" or words[0] == "finetune":
            words += ["--config", "small.yaml"]
        if words[0] == "finetune":
            words += _sizes()
        if words[0] == "reconstruct":
            words += ["--workers", "0", "--batch", "3"]
        assert run(words) == 0, words
    assert {"data build", "checkpoint import", "checkpoint export"} <= set(done)
    imported, tuned = load_decoder(at_home / "runs/published"), load_decoder(at_home / "runs/subj01")
    assert imported.layout().voxels == {"subj08": 7, "other": 9} and tuned.layout().voxels == {"subj04": 5}
    assert json.loads((at_home / "runs/subj01-test/metrics.json").read_text())
    back = torch.load(at_home / "share/subj01/last.pth", weights_only=True)
    assert back["subjects"] == ["subj04"]
    head = tuned.state_dict()["heads.subj04.weight"]
    assert torch.equal(back["model_state_dict"]["ridge.linears.0.weight"], head)
    # Finetuning began where the import ended: what all share is the published weights after two small steps.
    branch = "branches.bigg-tokens.linear.weight"
    moved = (tuned.state_dict()[branch] - imported.state_dict()[branch]).abs().max()
    assert 0 < float(moved) < 1e-3


def _sizes() -> list[str]:
    """What the made-up last.pth is smaller in than the published ones."""
    told = {
        "decoder.latent": 20,
        "decoder.hidden": 24,
        "spaces.bigg-tokens.prior.depth": 2,
        "spaces.bigg-tokens.prior.heads": 2,
        "spaces.bigg-tokens.prior.head_width": 36,
    }
    return [word for key, value in told.items() for word in ("--set", f"{key}={value}")]


def test_the_import_records_what_it_read_and_equals_it(at_home: Path, mindeye_published: ModuleType) -> None:
    words = ["checkpoint", "import", "mindeye2", "train_logs/final_multisubject_subj01/last.pth"]
    words += ["--out", "runs/published"]
    assert run([*words, "--subjects", "one,two", "--config", "small.yaml"]) == 0
    found = schema.resolve(at_home / "runs/published")
    assert schema.check(at_home / "runs/published")[0].usable
    told = json.loads((found.path / "config.json").read_text())
    assert told["recipe"]["decoder"]["latent"] == 20 and told["imported"]["file"] == "last.pth"
    weights, _ = mindeye_published.published("mindeye2")
    tensors = schema.load_tensors(found.path)
    assert torch.equal(tensors["heads.two.weight"], weights["ridge.linears.1.weight"])
    assert run([*words, "--subjects", "one,two", "--config", "small.yaml"]) == 2  # nothing is written over


def test_an_imported_checkpoint_predicts_what_the_public_code_does(
    mindeye_published: ModuleType, tmp_path: Path
) -> None:
    """With the sizes of the weights and the shipped recipe, nothing set by hand."""
    weights, theirs = mindeye_published.published("mindeye1")
    torch.save({"model_state_dict": weights}, tmp_path / "last.pth")
    words = ["checkpoint", "import", "mindeye1", str(tmp_path / "last.pth"), "--out", str(tmp_path / "run")]
    assert run([*words, "--subjects", "one"]) == 0
    decoder = load_decoder(tmp_path / "run")
    predicted = decoder.predict({"one": mindeye_published.given("subject 0", 2, 7)})
    tokens = (
        predicted.features["clip-tokens"] * 768**0.5
    )  # published code has the branch in the prior's units
    torch.testing.assert_close(tokens, theirs["tokens"], rtol=1e-5, atol=1e-5)
    directions = predicted.retrieval["clip-tokens"].view(2, 2, 768)
    torch.testing.assert_close(directions, theirs["directions"], rtol=1e-5, atol=1e-5)
    first = predicted.features["clip-tokens"][:1]
    drawn = decoder.for_pictures({"clip-tokens": first}, [torch.Generator().manual_seed(1)])
    torch.testing.assert_close(drawn["clip-tokens"], theirs["sampled-100"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--recipe", "mindeye2-nolow"], "take the recipe mindeye2 for weights with one"),
        (["--recipe", "mindeye2", "--set", "spaces.bigg-tokens.factor=null"], "has no factor"),
        (["--recipe", "mindeye2", "--set", "decoder.latent=21"], "set the recipe's decoder and prior"),
        (["--recipe", "default"], "has decoder.architecture residual"),
    ],
)
def test_a_recipe_that_is_not_of_the_weights_is_refused(
    at_home: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    start = [
        "checkpoint",
        "import",
        "mindeye2",
        "train_logs/final_multisubject_subj01/last.pth",
        "--out",
        "run",
    ]
    assert run([*start, "--subjects", "one,two", *words]) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (at_home / "run").exists()


def test_a_file_without_a_prior_is_taken_in_for_retrieval(
    at_home: Path, mindeye_published: ModuleType
) -> None:
    weights, _ = mindeye_published.published("mindeye2")
    without = {name: value for name, value in weights.items() if not name.startswith("diffusion_prior.")}
    torch.save({"model_state_dict": without}, at_home / "last.pth")
    words = ["checkpoint", "import", "mindeye2", "last.pth", "--out", "run", "--subjects", "one,two"]
    assert run(words) == 0
    decoder = load_decoder(at_home / "run")
    assert not decoder.layout().priors and decoder.layout().directed == {"bigg-tokens"}
