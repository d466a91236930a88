"""What goes wrong in published training code, and must not here, where no other test has it already.

`tests/test_upstream_defects.py` lists all such defects with the tests that guard against them.
"""

import dataclasses
import importlib.util
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from fmri2img import checkpoints_schema as schema
from fmri2img.datasets import Dataset, build_dataset
from fmri2img.datasets.plan import SamplingPlan
from fmri2img.models.decoder import MultiSubjectDecoder
from fmri2img.models.loading import load_decoder
from fmri2img.trainer import stages
from fmri2img.trainer.batches import BatchLoader
from fmri2img.trainer.config import Recipe
from fmri2img.trainer.stages import StageSpec, finetune, pretrain

Spec = Callable[..., StageSpec]


def test_heads_are_the_same_by_subject_in_whatever_order_subjects_are_named(spec: Spec) -> None:
    # MindEye2 keys heads by their place in a list, which no file tells.
    one = schema.load_tensors(pretrain(spec("one", ("subj01", "subj03"), steps=3)))
    other = schema.load_tensors(pretrain(spec("other", ("subj03", "subj01"), steps=3)))
    assert one.keys() == other.keys()
    for name, value in one.items():
        if name.startswith("alignment."):  # sums over subjects, in the order given
            torch.testing.assert_close(other[name], value, rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(other[name], value), name


def test_a_new_head_has_nothing_of_the_heads_before_it(spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    # MindEye2 drops the weight of the first head before it loads without strictness, and keeps the bias.
    parent = pretrain(spec("parent", ("subj01", "subj02"), steps=2))
    clean = schema.load_tensors(finetune(spec("clean", ("subj03",), parent=parent, steps=0)))

    def shifted(path: Path) -> object:
        decoder = load_decoder(path)
        assert isinstance(decoder, MultiSubjectDecoder)
        with torch.no_grad():
            for head in decoder.heads.values():
                for parameter in head.parameters():
                    parameter.add_(100)
        return decoder

    monkeypatch.setattr(stages, "load_decoder", shifted)
    found = schema.load_tensors(finetune(spec("found", ("subj03",), parent=parent, steps=0)))
    assert {"heads.subj03.weight", "heads.subj03.bias"} == {n for n in found if n.startswith("heads.")}
    assert [name for name in clean if not torch.equal(clean[name], found[name])] == []


def test_every_layer_changes_what_is_predicted(processes: ModuleType) -> None:
    # The shared blocks of MindEye2 change nothing at the published setting, whatever their weights.
    made = processes.decoder().eval()
    responses, _, _ = processes.batch(0)

    @torch.no_grad()
    def predicted() -> Tensor:
        _, features, directions, *_ = made(responses)
        return torch.cat([*features.values(), *directions.values()], dim=1)

    before = predicted()
    for name, parameter in made.named_parameters():
        kept = parameter.detach().clone()
        parameter.data += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
        assert float((predicted() - before).abs().max()) > 1e-3, name
        parameter.data.copy_(kept)


def test_a_batch_keeps_all_its_rows_though_pictures_come_twice(data: Path) -> None:
    # MindEye2 throws such batches away: half of all at 42 rows of a single session.
    dataset = Dataset.open(data)
    tables = {"subj01": dataset.samples("subj01", "train")}
    plan = SamplingPlan(tables, fingerprint=dataset.fingerprint, seed=0, global_batch=40, lanes=2)
    loader = BatchLoader(dataset, tables, plan, ["words"], rank=0, world_size=1, seed=0, noise=0.0)
    for batch in loader.batches(0, 5):
        assert len(batch.responses["subj01"]) == len(batch.features["words"]) == len(batch.pictures) == 40
        assert len(batch.pictures.unique()) < 40


def test_validation_is_on_no_test_picture_and_on_none_that_anyone_trains_on(spec: Spec) -> None:
    # Published systems validate on the test set, pick the best weights there, or split trials of one picture.
    told = spec("run", ("subj01", "subj02", "subj03"))
    recipe = Recipe.model_validate(told.recipe)
    material = stages.open_material(told, recipe, recipe.pretraining)
    dataset = material.dataset
    test = {int(n) for name in dataset.subjects for n in dataset.samples(name, "test").nsd_id}
    trained = {int(n) for table in material.tables.values() for n in table.nsd_id}
    held = {name: set(rows.nsd_ids.tolist()) for name, rows in material.validation.items()}
    assert test and all(held.values()) and set(held) == set(told.subjects)
    for name, pictures in held.items():
        assert not pictures & (test | trained), name
    assert not trained & test


@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_a_single_shard_feeds_every_rank_alike(data: Path, world: int) -> None:
    # With a tar for each session, finetuning on one session gave everything to rank 0.
    dataset = Dataset.open(data)
    table = dataset.samples("subj01", "train")
    whole = dataclasses.replace(table, shard=np.zeros_like(table.shard), row=np.arange(len(table)))
    plan = SamplingPlan(
        {"subj01": whole}, fingerprint="f", seed=0, global_batch=16, lanes=8, sessions={"subj01": [1]}
    )
    rows = [plan.rank_rows(0, rank, world)["subj01"] for rank in range(world)]
    assert [len(samples) for samples, _ in rows] == [16 // world] * world
    trials = [pair for part in rows for pair in zip(*(values.tolist() for values in part), strict=True)]
    assert len(set(trials)) == 16


def test_reading_all_trials_keeps_a_small_share_of_them_in_memory(tmp_path: Path) -> None:
    # Every process of MindEye2 holds all responses of all subjects, and the pictures of an epoch as float32.
    conftest = load(Path(__file__).parent / "conftest.py")
    subject = conftest.LinearSubject(1, 20_000)
    source = conftest.LinearSource(subjects={"subj01": subject})
    dataset = build_dataset(source, tmp_path / "wide", samples_per_shard=4)
    tables = {"subj01": dataset.samples("subj01", "train")}
    plan = SamplingPlan(tables, fingerprint=dataset.fingerprint, seed=0, global_batch=2, lanes=1)
    loader = BatchLoader(dataset, tables, plan, [], rank=0, world_size=1, seed=0, noise=0.0, ahead=2)
    whole = plan.trials["subj01"] * 20_000 * 2  # bytes of all responses as stored
    for _ in loader.batches(0, 2):  # what is kept for good, such as tables of shards
        pass
    tracemalloc.start()
    try:
        seen = sum(len(batch.pictures) for batch in loader.batches(0, 2 * plan.steps_per_epoch))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert seen >= 2 * plan.trials["subj01"]
    assert peak < whole / 3


def load(path: Path) -> ModuleType:
    """A file beside this one as a module."""
    found = importlib.util.spec_from_file_location("linear_source", path)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules["linear_source"] = module  # dataclasses look their module up
    found.loader.exec_module(module)
    return module
