"""A recipe resolves layer over layer, and every mistake is one sentence that names the layer at fault."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from fmri2img.config import load_recipe, shipped_recipes, with_generator
from fmri2img.errors import InputError

OWN = """
name: own
spaces:
  grey: {extractor: {kind: pixels, size: 4, channels: 1}}
generator: {kind: pixels, space: grey, size: 8}
"""


def refused(name: str = "default", *, config: Path | None = None, values: tuple[str, ...] = ()) -> str:
    with pytest.raises(InputError) as caught:
        load_recipe(name, config=config, values=values)
    message = str(caught.value)
    assert "\n" not in message
    return message


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "own.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_resolves(name: str) -> None:
    assert load_recipe(name).name == name


def test_an_own_recipe_needs_no_more_than_what_has_no_default(tmp_path: Path) -> None:
    recipe = load_recipe(str(written(tmp_path, OWN)))
    assert list(recipe.spaces) == ["grey"] and recipe.pretraining.steps == 1000


def test_command_line_goes_over_file_goes_over_recipe(tmp_path: Path) -> None:
    config = written(tmp_path, "pretraining: {steps: 7, learning_rate: 0.5}")
    recipe = load_recipe(
        "default", config=config, values=("pretraining.steps=8", "pretraining.steps=9", "finetuning.seed=3")
    )
    assert recipe.pretraining.steps == 9
    assert recipe.pretraining.learning_rate == 0.5
    assert recipe.finetuning.seed == 3
    assert recipe.pretraining.global_batch == load_recipe("default").pretraining.global_batch


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("pretraining.step=1", ["--set pretraining.step=1:", "did you mean steps?"]),
        ("a.b=1", ["a is not a key of a recipe", "pretraining"]),
        ("spaces.pixels-16.foo=1", ["spaces.pixels-16.foo", "losses"]),
        ("spaces.pixels-16.losses.mes.weight=1", ["losses.mes is not a key", "did you mean mse?"]),
        ("spaces.pixels-16.losses.mse.wieght=1", ["losses.mse.wieght is not a key", "did you mean weight?"]),
        ("spaces.pixels-16.regression=0.5", ["--set", "is now said as losses: {mse: {weight: 0.5}}"]),
        ("spaces.pixels-16.extractor.sz=8", ["--set", "spaces.pixels-16.extractor.sz is not a key"]),
        ("spaces.pixels-16.extractor.kind=x", ["extractor.kind must be one of 'pixels'", "not 'x'"]),
        ("spaces.x.losses.mse.weight=1", ["--set spaces.x", "spaces.x.extractor is missing"]),
        ("pretraining.steps=-1", ["must be greater than or equal to 0", "not -1"]),
        ("pretraining.steps=many", ["must be a valid integer", "'many'"]),
        ("pretraining.steps=", ["pretraining.steps", "None"]),
        ("pretraining=1", ["pretraining must be a mapping", "not 1"]),
        ("pretraining.steps=[1", ["not valid YAML", "line 1"]),
        ("pretraining.schedule=cosin", ["'one-cycle'", "'cosin'"]),
        ("pretraining..steps=1", ["key=value"]),
        ("pretraining.steps", ["'pretraining.steps' must be key=value, for example"]),
        ("=1", ["key=value"]),
        ("generator.space=x", ["--set generator.space=x", "the recipe predicts"]),
    ],
)
def test_a_wrong_value_on_the_command_line_is_named_with_the_rule(value: str, said: list[str]) -> None:
    message = refused(values=(value,))
    assert all(part in message for part in said), message


def test_the_last_layer_that_touched_a_value_is_blamed(tmp_path: Path) -> None:
    config = written(tmp_path, "pretraining: {steps: -3}")
    assert refused(config=config).startswith(f"--config {config}: pretraining.steps")
    assert load_recipe("default", config=config, values=("pretraining.steps=3",)).pretraining.steps == 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [1,\nb", "line 2"),
        (bytes(range(256)), "is not text"),
        ("- 1", "holds a list"),
        ("", "holds nothing"),
        ("name: \x00", "not valid YAML"),
        ("when: 2020-13-45", "not valid YAML: month"),
        ("name: !!python/object/apply:os.system ['x']", "not valid YAML"),
        ("? {a: 1}\n: 2", "line 1"),
        ("1: 2", "keys are words"),
        ("description: &a [*a]", "description"),
        ("pretrainin: {steps: 3}", "did you mean pretraining?"),
    ],
)
def test_a_file_that_is_no_recipe_is_named_with_the_reason(
    tmp_path: Path, text: str | bytes, said: str
) -> None:
    path = written(tmp_path, text)
    message = refused(config=path)
    assert str(path) in message and said in message, message


def test_all_that_is_missing_in_an_own_recipe_is_said_at_once(tmp_path: Path) -> None:
    message = refused(str(written(tmp_path, "name: own\nspaces: {}\nfoo: 1\n")))
    assert "spaces must hold at least 1 entry" in message
    assert "generator is missing" in message
    assert "foo is not a key" in message


def test_recipes_that_are_not_there_are_told_from_folders(tmp_path: Path) -> None:
    assert "use one of default" in refused("bogus")
    assert "does not exist" in refused(str(tmp_path / "no.yaml"))
    assert "is a folder" in refused(config=tmp_path)


def test_another_generator_keeps_nothing_of_the_recipes(tmp_path: Path) -> None:
    recipe = load_recipe("simulation")
    base: dict[str, Any] = recipe.model_dump(mode="json")["generator"]["base"]
    assert (base.pop("latents"), base.pop("strength")) == ("vae", 0.6)
    file = tmp_path / "generator.yaml"
    file.write_text(yaml.safe_dump(base))
    found: Any = with_generator(recipe, file, ("guidance=2",)).generator
    assert (found.kind, found.latents, found.guidance) == ("unclip", None, 2.0)
    changed: Any = with_generator(recipe, None, ("base.guidance=2",)).generator
    assert (changed.base.latents, changed.base.guidance) == ("vae", 2.0)
