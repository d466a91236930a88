"""Resolve a recipe: defaults, then the recipe's YAML, then a configuration file, then values from the command line."""

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from fmri2img.errors import InputError
from fmri2img.trainer.config import Recipe


def shipped_recipes() -> list[str]:
    """Names of the recipes in the package."""
    folder = resources.files("fmri2img") / "recipes"
    return sorted(path.name.removesuffix(".yaml") for path in folder.iterdir() if path.name.endswith(".yaml"))


def load_recipe(name: str, *, config: Path | None = None, values: Sequence[str] = ()) -> Recipe:
    """The recipe of a name or of a YAML file, changed by `config` and by `key.key=value` pairs.

    Raises InputError in one sentence for an unknown recipe, an unknown key or a value out of range.
    """
    layers = _read(_recipe_path(name))
    if config is not None:
        layers = _merge(layers, _read(config))
    for pair in values:
        layers = _merge(layers, _pair(pair))
    try:
        return Recipe.model_validate(layers)
    except ValidationError as error:
        raise InputError(f"recipe {name}: {_sentence(error)}") from error


def _recipe_path(name: str) -> Path:
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        return path
    if name in shipped_recipes():
        return Path(str(resources.files("fmri2img") / "recipes" / f"{name}.yaml"))
    raise InputError(
        f"there is no recipe {name!r}: use one of {', '.join(shipped_recipes())}, or the path of a .yaml file"
    )


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"there is no file {path}: give the path of a YAML file")
    try:
        value = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} holds {type(value).__name__}, a recipe is a mapping of keys to values")
    return value


def _pair(text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise InputError(f"--set {text!r} must be key=value, for example pretraining.steps=500")
    try:
        result: Any = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise InputError(
            f"--set {text!r}: the value is not valid YAML: {' '.join(str(error).split())}"
        ) from error
    for part in reversed(key.split(".")):
        result = {part: result}
    return dict(result)


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _sentence(error: ValidationError) -> str:
    parts = []
    for item in error.errors(include_url=False):
        place = ".".join(str(part) for part in item["loc"]) or "the recipe"
        message = "is not a key of a recipe" if item["type"] == "extra_forbidden" else item["msg"]
        shown = "" if item["type"] in ("missing", "extra_forbidden") else f" (got {item['input']!r})"
        parts.append(f"{place}: {message}{shown}"[:300])
    return "; ".join(parts)
