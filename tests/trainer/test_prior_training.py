"""Priors, rebuilt responses and cycles in a run: drawn by name, resumed to the bit, and left alone where frozen."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from fmri2img import checkpoints_schema as schema
from fmri2img.errors import InputError
from fmri2img.models.decoder import MultiSubjectDecoder, decay_groups
from fmri2img.models.loading import load_decoder
from fmri2img.models.prior import PriorConfig
from fmri2img.trainer.config import Recipe
from fmri2img.trainer.objectives.prior import draw_noise, fixed_noise
from fmri2img.trainer.stages import StageSpec, finetune, pretrain
from fmri2img.trainer.watch import read_records

Specs = Callable[..., Any]
PEOPLE = ("subj01", "subj02")
PRIOR = PriorConfig(timesteps=7, sampling_steps=3, condition_dropout=0.4)


@pytest.fixture
def whole(spec: Specs, with_prior_and_cycle: Callable[..., Any]) -> Specs:
    """`spec` with a prior on words and a cycle."""

    def make(*arguments: Any, **changes: Any) -> StageSpec:
        told = spec(*arguments, **changes)
        kept = {key: value for key, value in told.recipe["pretraining"].items() if key != "freeze"}
        told.recipe["pretraining"] = kept
        return replace(told, recipe=with_prior_and_cycle(told.recipe))

    return make


@pytest.fixture
def parent(whole: Specs) -> Path:
    return pretrain(whole("parent", PEOPLE, steps=3))


def parts_changed(parent: Path, child: Path) -> set[str]:
    """First words of the tensors' names that the child has otherwise than its parent."""
    was, now = schema.load_tensors(parent), schema.load_tensors(child)
    return {
        name.split(".")[0] for name, value in now.items() if name in was and not torch.equal(value, was[name])
    }


def test_noise_belongs_to_samples_by_name_whatever_process_has_their_lane() -> None:
    rows = {"subj01": 8, "subj02": 4}
    alone = draw_noise("words", PRIOR, 5, rows, range(4), seed=3, step=9)
    half = {name: count // 2 for name, count in rows.items()}
    ranks = [draw_noise("words", PRIOR, 5, half, lanes, seed=3, step=9) for lanes in ((0, 1), (2, 3))]
    for field in ("noise", "timestep", "dropped"):
        one = getattr(alone, field).split([8, 4])
        several = [getattr(drawn, field).split([4, 2]) for drawn in ranks]
        for subject in (0, 1):
            assert torch.equal(one[subject], torch.cat([parts[subject] for parts in several]))
    other = draw_noise("words", PRIOR, 5, rows, range(4), seed=3, step=10)
    assert not torch.equal(other.noise, alone.noise) and not torch.equal(other.timestep, alone.timestep)


def test_timesteps_noise_and_what_rows_go_without_have_the_shares_that_they_should() -> None:
    drawn = draw_noise("words", PRIOR, 3, {"subj01": 6000}, [0], seed=0, step=0)
    counts = drawn.timestep.bincount(minlength=7)
    assert len(counts) == 7 and float((counts / 6000 - 1 / 7).abs().max()) < 0.02
    assert drawn.dropped.double().mean(0).tolist() == pytest.approx([0.4, 0.4], abs=0.03)
    # Condition and noisy tokens are left out independently of each other.
    assert float(drawn.dropped.all(1).double().mean()) == pytest.approx(0.16, abs=0.03)
    assert float(drawn.noise.mean()) == pytest.approx(0, abs=0.03)
    assert float(drawn.noise.std()) == pytest.approx(1, abs=0.02)


def test_validation_asks_a_picture_the_same_whatever_stands_beside_it_but_for_its_timestep() -> None:
    some = fixed_noise("words", PRIOR, 4, "subj01", np.array([7, 3, 9]), seed=1)
    again = fixed_noise("words", PRIOR, 4, "subj01", np.array([9, 7]), seed=1)
    assert torch.equal(some.noise[0], again.noise[1]) and torch.equal(some.noise[2], again.noise[0])
    assert some.timestep.tolist() == [0, 2, 4] and not some.dropped.any()


def test_a_run_with_a_prior_and_a_cycle_resumes_to_the_bit(
    whole: Specs, faults: Any, killed: type[BaseException]
) -> None:
    through = finetune(whole("through", ema=0.9))
    with pytest.raises(killed):
        finetune(whole("broken", ema=0.9), listener=faults.kill_at(5))
    again = finetune(whole("broken", ema=0.9))
    for name in ("model.safetensors", "ema.safetensors", "state/optimiser.safetensors"):
        assert (again / name).read_bytes() == (through / name).read_bytes()
    names = schema.load_tensors(again)
    assert {name.split(".")[0] for name in names} >= {"priors", "rebuild"}


def test_every_term_is_told_in_training_and_validation(whole: Specs) -> None:
    told = whole("run", PEOPLE, steps=4, validate_every=2)
    pretrain(told)
    records = read_records(Path(told.run))
    first = next(record for record in records if "train/loss" in record)
    assert {"train/words/prior", "train/response", "train/cycle"} <= set(first)
    last = [record for record in records if "train/loss" in record][-1]
    assert "train/response" not in last and "train/cycle" in last
    judged = [record for record in records if "validation/loss" in record]
    assert all({"validation/words/prior", "validation/cycle"} <= set(record) for record in judged)


def test_frozen_priors_stay_as_they_were_and_everything_else_learns(whole: Specs, parent: Path) -> None:
    child = finetune(whole("child", ("subj03",), parent=parent, trainable="whole", freeze=["priors"]))
    assert parts_changed(parent, child) == {"backbone", "branches"}
    mine = finetune(whole("mine", ("subj03",), parent=parent, trainable="whole"))
    assert parts_changed(parent, mine) == {"backbone", "branches", "priors"}
    moments = schema.load_tensors(child, "state/optimiser.safetensors")
    assert not any(".priors." in name for name in moments) and any(".branches." in name for name in moments)


def test_what_is_frozen_is_not_freed_after_the_heads_share_of_the_steps(whole: Specs, parent: Path) -> None:
    told = {"trainable": "head-then-whole", "freeze": ["priors", "backbone"]}
    child = finetune(whole("child", ("subj03",), parent=parent, **told))
    assert parts_changed(parent, child) == {"branches"}


def test_the_head_and_the_map_back_to_voxels_are_a_subjects_own(whole: Specs, parent: Path) -> None:
    start = finetune(whole("start", ("subj03",), parent=parent, trainable="head", steps=0))
    child = finetune(whole("child", ("subj03",), parent=parent, trainable="head"))
    assert parts_changed(parent, child) == set()
    assert parts_changed(start, child) == {"heads", "rebuild"}
    decoder = load_decoder(child)
    assert isinstance(decoder, MultiSubjectDecoder) and list(decoder.rebuild) == ["subj03"]


def test_a_new_map_back_to_voxels_starts_better_than_the_mean_response(whole: Specs) -> None:
    told = whole("run", PEOPLE, steps=1, validation=0.0)
    pretrain(told)
    record = next(r for r in read_records(Path(told.run)) if "train/loss" in r)
    assert 0 < record["train/response"] < 1.25  # responses are z-scored, with noise of variance 0.25 added


def test_freezing_is_refused_where_there_is_nothing_to_keep(whole: Specs, spec: Specs, parent: Path) -> None:
    with pytest.raises(InputError, match="keeps parts of a pretrained decoder, and there is none"):
        finetune(whole("run", freeze=["priors"]))
    for trainable in ("head", "lora"):
        with pytest.raises(ValidationError, match=f"adds nothing to trainable {trainable}"):
            Recipe.model_validate(whole("r", freeze=["priors"], trainable=trainable).recipe)
    with pytest.raises(ValidationError, match="only finetuning freezes"):
        Recipe.model_validate(spec("run", freeze=["priors"]).recipe)


def test_a_prior_of_another_shape_is_refused_and_other_sampling_is_not(whole: Specs, parent: Path) -> None:
    told = whole("child", ("subj03",), parent=parent, steps=1, trainable="head")
    told.recipe["spaces"]["words"]["prior"].update(guidance=2.0, sampling_steps=2, eta=0.0)
    child = load_decoder(finetune(told))
    assert isinstance(child, MultiSubjectDecoder) and child.prior("words").config.guidance == 2.0
    other = whole("other", ("subj03",), parent=parent, steps=1)
    other.recipe["spaces"]["words"]["prior"]["depth"] = 2
    with pytest.raises(InputError, match="leave what decides its weights as it was in pretraining"):
        finetune(other)


def test_a_prior_and_its_loss_a_map_and_its_losses_come_together(whole: Specs) -> None:
    def refused(change: Callable[[dict[str, Any]], Any], match: str) -> None:
        recipe = whole("run").recipe
        change(recipe)
        with pytest.raises(ValidationError, match=match):
            Recipe.model_validate(recipe)

    refused(lambda r: r["spaces"]["words"].pop("prior"), "a loss prior and no prior")
    refused(lambda r: r["spaces"]["words"]["losses"].pop("prior"), "a prior and no losses.prior")
    refused(lambda r: r.pop("losses"), "decoder.rebuild and no losses.response or losses.cycle")
    refused(lambda r: r["decoder"].pop("rebuild"), "losses.response or losses.cycle and no decoder.rebuild")

    def mean_of_nothing(recipe: dict[str, Any]) -> None:
        recipe["spaces"]["words"]["prior"]["use"] = "mean"
        recipe["spaces"]["words"]["losses"].pop("mse")

    refused(mean_of_nothing, "which no loss trains to be the mean")


def test_priors_and_maps_have_rates_of_their_own(parent: Path) -> None:
    decoder = load_decoder(parent)
    groups = decay_groups(decoder, 0.1, rates={"priors": 0.5, "rebuild": 0.25})
    share = {id(p): group["share"] for group in groups for p in group["params"]}  # type: ignore[attr-defined]
    wanted = {"priors": 0.5, "rebuild": 0.25}
    for name, parameter in decoder.named_parameters():
        assert share[id(parameter)] == wanted.get(name.split(".")[0], 1.0)
