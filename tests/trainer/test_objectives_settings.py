"""When a loss counts and how much, as closed forms of the step; what a recipe may say of losses, and what not."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from fmri2img.trainer.config import Recipe, SpaceConfig, TrainingConfig
from fmri2img.trainer.objectives import Losses, Place, active_mixing
from fmri2img.trainer.objectives.settings import BiMixCo, Loss, SoftClip

PIXELS = {"kind": "pixels", "size": 2}


def recipe(**spaces: dict[str, Any]) -> Recipe:
    told = {name: {"extractor": PIXELS, "losses": losses} for name, losses in spaces.items()}
    return Recipe.model_validate(
        {"name": "r", "spaces": told, "generator": {"kind": "pixels", "space": next(iter(told)), "size": 2}}
    )


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 10, 100, 333])
@pytest.mark.parametrize("cut", [0.1, 0.33, 1 / 3, 0.5, 0.9])
def test_of_two_losses_that_follow_each_other_exactly_one_counts(steps: int, cut: float) -> None:
    before, after = Loss(end=cut), Loss(begin=cut)
    for step in range(steps):
        assert before.active(Place(step, steps)) != after.active(Place(step, steps))


def test_a_loss_counts_in_its_share_of_the_run() -> None:
    loss = Loss(begin=0.2, end=0.5)
    assert [step for step in range(10) if loss.active(Place(step, 10))] == [2, 3, 4]


def test_temperature_and_weight_go_along_half_a_cosine_over_the_losss_own_steps() -> None:
    loss = SoftClip(begin=0.5, weight=2.0, final_weight=0.0)
    places = [Place(step, 20) for step in range(10, 20)]
    truth = [0.0075 + (0.004 - 0.0075) / 2 * (1 + math.cos(math.pi * t / 9)) for t in range(10)]
    assert [loss.temperature_at(place) for place in places] == pytest.approx(truth, rel=1e-12)
    assert loss.temperature_at(places[0]) == 0.004 and loss.temperature_at(places[-1]) == 0.0075
    assert [loss.weight_at(place) for place in places] == pytest.approx(
        [1 + math.cos(math.pi * t / 9) for t in range(10)], abs=1e-12
    )


def test_what_has_no_final_value_stays() -> None:
    loss = BiMixCo(weight=0.7, end=0.33)
    assert {(loss.weight_at(Place(s, 9)), loss.temperature_at(Place(s, 9))) for s in range(3)} == {
        (0.7, 0.006)
    }


def test_mixing_is_on_while_any_space_asks_for_it() -> None:
    spaces = [Losses(mse=Loss()), Losses(bimixco=BiMixCo(end=0.33)), Losses(bimixco=BiMixCo(end=0.5))]
    on = [active_mixing(spaces, Place(step, 10)) is not None for step in range(10)]
    assert on == [True] * 5 + [False] * 5


def test_a_space_without_losses_has_the_mean_squared_error() -> None:
    space = SpaceConfig.model_validate({"extractor": PIXELS})
    assert [(kind, loss.weight) for kind, loss in space.losses] == [("mse", 1.0)] and not space.directed


@pytest.mark.parametrize("kind", ["contrastive", "bimixco", "softclip"])
def test_a_loss_of_directions_makes_a_space_directed_whatever_its_weight(kind: str) -> None:
    space = SpaceConfig.model_validate({"extractor": PIXELS, "losses": {kind: {"weight": 0}}})
    assert space.directed


def test_a_recipe_tells_only_the_losses_it_has_and_reads_itself_again() -> None:
    made = recipe(a={"mse": {}, "softclip": {"begin": 0.5}, "l1": None}, b={"cosine": {}})
    told = made.model_dump(mode="json")
    assert list(told["spaces"]["a"]["losses"]) == ["mse", "softclip"]
    assert Recipe.model_validate(told) == made


@pytest.mark.parametrize(
    ("old", "said"),
    [
        ({"regression": 0.5}, "regression of a space is now said as losses: {mse: {weight: 0.5}}"),
        (
            {"contrastive": 0.3, "temperature": 0.2},
            "contrastive, temperature of a space is now said as "
            "losses: {mse: {weight: 1.0}, contrastive: {weight: 0.3, temperature: 0.2}}",
        ),
        ({"regression": 0, "contrastive": 1}, "said as losses: {contrastive: {weight: 1}}"),
    ],
)
def test_a_recipe_of_before_is_told_what_to_write(old: dict[str, float], said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        SpaceConfig.model_validate({"extractor": PIXELS, **old})
    (error,) = caught.value.errors()
    assert said in error["msg"] and "\n" not in error["msg"]


@pytest.mark.parametrize(
    ("spaces", "said"),
    [
        ({"a": {}}, "every loss has weight 0"),
        ({"a": {"mse": {"weight": 0}}}, "every loss has weight 0"),
        ({"a": {"mse": {"begin": 0.2}}}, "no loss counts after 0 of the run"),
        ({"a": {"mse": {"end": 0.5}, "cosine": {"begin": 0.6}}}, "no loss counts after 0.5 of the run"),
        ({"a": {"mse": {"end": 0.5}, "cosine": {"begin": 0.5, "weight": 0}}}, "no loss counts after 0.5"),
        ({"a": {"mse": {"begin": 0.5, "end": 0.5}}}, "begin 0.5 must lie before end 0.5"),
        (
            {"a": {"bimixco": {}}, "b": {"bimixco": {"beta": 0.2}}},
            r"bimixco is told beta and mixed as .* give every bimixco the same",
        ),
        ({"a": {"mse": {"temperature": 1}}}, "Extra inputs are not permitted"),
        ({"a": {"clip": {}}}, "Extra inputs are not permitted"),
    ],
)
def test_losses_that_cannot_train_are_refused(spaces: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        recipe(**spaces)


def test_losses_may_overlap_and_leave_each_other() -> None:
    recipe(a={"bimixco": {"end": 0.33}, "softclip": {"begin": 0.33}}, b={"l1": {"begin": 0.5}})


def test_the_examples_of_the_documentation_are_recipes() -> None:
    text = (Path(__file__).parents[2] / "docs" / "training-objectives.md").read_text()
    examples = [yaml.safe_load(found) for found in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]
    mixed, drawn = (
        SpaceConfig.model_validate(space) for example in examples for space in example["spaces"].values()
    )
    assert mixed.losses == Losses.model_validate(
        {"mse": {}, "bimixco": {"end": 0.33}, "softclip": {"begin": 0.33}}
    )
    assert drawn.prior is not None and drawn.losses.prior is not None
    for kind in Losses.model_fields:
        assert f"| `{kind}` |" in text


def test_picking_the_best_by_the_clock_is_refused() -> None:
    with pytest.raises(ValidationError, match="set validate_share to 1 and a larger validate_every"):
        TrainingConfig(select="best", validate_share=0.1)
