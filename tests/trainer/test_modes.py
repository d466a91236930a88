"""What finetuning changes of a pretrained decoder, and what it leaves as it was."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fmri2img import checkpoints_schema as schema
from fmri2img.errors import InputError
from fmri2img.models.decoder import MultiSubjectDecoder
from fmri2img.models.loading import load_decoder
from fmri2img.trainer.stages import finetune, pretrain

Specs = Callable[..., Any]
PEOPLE = ("subj01", "subj02")


@pytest.fixture
def parent(spec: Specs) -> Path:
    return pretrain(spec("parent", PEOPLE, steps=3))


def changed(parent: Path, child: Path) -> set[str]:
    """Names of the child's tensors that the parent has otherwise."""
    was, now = (schema.load_tensors(path) for path in (parent, child))
    return {name for name, value in now.items() if name in was and not torch.equal(value, was[name])}


def test_head_changes_nothing_that_people_share(spec: Specs, parent: Path) -> None:
    child = finetune(spec("child", ("subj03",), parent=parent, trainable="head"))
    assert changed(parent, child) == set()
    assert set(schema.load_tensors(child)) - set(schema.load_tensors(parent)) == {
        "heads.subj03.weight",
        "heads.subj03.bias",
    }


def test_head_then_whole_frees_the_rest_after_its_share_of_the_steps(
    spec: Specs, parent: Path, faults: Any, killed: type[BaseException]
) -> None:
    both = {"trainable": "head-then-whole", "head_share": 0.6, "keep": 9, "checkpoint_every": 1}
    child = finetune(spec("child", ("subj03",), parent=parent, **both))
    steps = {n: child.parent / schema.step_path(child.parent, n).name for n in range(1, 9)}
    # The head alone has steps 0 to 4 (of 8), so the checkpoint after step 5 is the last with the parent's backbone.
    assert changed(parent, steps[5]) == set()
    assert any(name.startswith("backbone.") for name in changed(parent, steps[6]))
    with pytest.raises(killed):
        finetune(spec("again", ("subj03",), parent=parent, **both), listener=faults.kill_at(7))
    again = finetune(spec("again", ("subj03",), parent=parent, **both))
    for name in ("model.safetensors", "state/optimiser.safetensors"):
        assert (again / name).read_bytes() == (child / name).read_bytes()


def test_lora_changes_adapters_and_head_alone_and_starts_as_the_parent(
    spec: Specs, parent: Path, tmp_path: Path
) -> None:
    child = finetune(spec("child", ("subj03",), parent=parent, trainable="lora", lora_rank=2))
    assert changed(parent, child) == set()
    adapted = load_decoder(child)
    assert isinstance(adapted, MultiSubjectDecoder)
    moved = {
        n for n, p in adapted.named_parameters() if ".adapter." in n and n.endswith("1.weight") and p.any()
    }
    assert len(moved) == 3  # both layers of the one block, and the path around it
    start = load_decoder(finetune(spec("start", ("subj03",), parent=parent, trainable="lora", steps=0)))
    plain = load_decoder(finetune(spec("plain", ("subj03",), parent=parent, trainable="head", steps=0)))
    responses = {"subj03": torch.randn(5, 6, generator=torch.Generator().manual_seed(0))}
    for space, value in plain.predict(responses).features.items():
        assert torch.equal(start.predict(responses).features[space], value)
    kept = MultiSubjectDecoder.from_pretrained(adapted.save_pretrained(tmp_path / "folder"))
    for space, value in adapted.predict(responses).features.items():
        assert torch.equal(kept.predict(responses).features[space], value)


def test_a_subject_is_added_and_the_others_predict_as_before(spec: Specs, parent: Path) -> None:
    told = replace(spec("child", ("subj03",), parent=parent, trainable="head"), keep_heads=True)
    child = finetune(told)
    manifest = schema.read_manifest(child)
    assert set(manifest.subjects) == {*PEOPLE, "subj03"}
    before, after = load_decoder(parent), load_decoder(child)
    assert after.subjects == [*PEOPLE, "subj03"]
    responses = {"subj02": torch.from_numpy(np.random.default_rng(0).normal(size=(4, 7)).astype(np.float32))}
    for space, value in before.predict(responses).features.items():
        assert torch.equal(after.predict(responses).features[space], value)


def test_heads_are_not_kept_when_what_they_share_changes(spec: Specs, parent: Path) -> None:
    told = replace(spec("child", ("subj03",), parent=parent, trainable="whole"), keep_heads=True)
    with pytest.raises(InputError, match=r"set finetuning\.trainable=head, or leave --keep-heads out"):
        finetune(told)


def test_adapters_of_another_rank_are_refused(spec: Specs, parent: Path) -> None:
    child = finetune(spec("child", ("subj03",), parent=parent, trainable="lora", lora_rank=2, steps=1))
    with pytest.raises(InputError, match="adapters of rank 3 do not fit"):
        finetune(spec("grand", ("subj01",), parent=child, trainable="lora", lora_rank=3, steps=1))
