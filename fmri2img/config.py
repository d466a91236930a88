"""Resolve a recipe: defaults, then the recipe's YAML, then a configuration file, then values from the command line."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from fmri2img.errors import InputError
from fmri2img.trainer.config import Recipe

Layer = tuple[str, dict[str, Any]]  # where the values come from, as the user wrote it, and the values


def shipped_recipes() -> list[str]:
    """Names of the recipes in the package."""
    folder = resources.files("fmri2img") / "recipes"
    return sorted(path.name.removesuffix(".yaml") for path in folder.iterdir() if path.name.endswith(".yaml"))


def load_recipe(name: str, *, config: Path | None = None, values: Sequence[str] = ()) -> Recipe:
    """The recipe of a name or of a YAML file, changed by `config` and by `key.key=value` pairs.

    Raises InputError in one sentence, which names the layer at fault, for an unknown recipe, an unknown key or a value
    out of range.
    """
    layers = _recipe_layers(name)
    if config is not None:
        layers.append((f"--config {config}", _read(config)))
    layers += [(f"--set {pair}", _pair(pair)) for pair in values]
    return _resolved(name, layers)


def with_generator(recipe: Recipe, file: Path | None, values: Sequence[str] = ()) -> Recipe:
    """The recipe with the generator of a YAML file (or of another recipe's file), changed by `key=value` pairs.

    Raises InputError as `load_recipe` does, also for a generator that reads a space which the recipe lacks.
    """
    values_of = recipe.model_dump(mode="json")
    layers: list[Layer] = [(f"recipe {recipe.name}", values_of)]
    if file is not None:
        told = _read(file)
        del values_of["generator"]  # nothing of it is to be left in the other
        layers.append((f"--generator {file}", {"generator": told.get("generator", told)}))
    layers += [(f"--set {pair}", {"generator": _pair(pair)}) for pair in values]
    return _resolved(recipe.name, layers)


def _resolved(name: str, layers: Sequence[Layer]) -> Recipe:
    merged: dict[str, Any] = {}
    for _, layer in layers:
        merged = _merge(merged, layer)
    try:
        return Recipe.model_validate(merged)
    except ValidationError as error:
        raise InputError(_sentence(error, merged, layers)) from error
    except RecursionError as error:
        raise InputError(
            f"recipe {name}: a value contains itself: YAML aliases must not be circular"
        ) from error


def _recipe_layers(name: str) -> list[Layer]:
    """The recipe's values, below them those of the shipped recipe that its `base` names, and so on."""
    layers: list[Layer] = []
    names = [name]
    while names:
        values = _read(_recipe_path(names[-1]))
        base = values.pop("base", None)
        layers.insert(0, (f"recipe {names[-1]}", values))
        if base is None:
            break
        if not isinstance(base, str) or base in names:
            raise InputError(f"recipe {names[-1]}: base {base!r} must be the name of another recipe")
        names.append(base)
    return layers


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
        what = "is a folder" if path.is_dir() else "does not exist"
        raise InputError(f"{path} {what}: give the path of a YAML file")
    try:
        value = yaml.safe_load(path.read_text("utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text: a recipe is a YAML file in UTF-8") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid YAML: {_reason(error)}") from error
    if not isinstance(value, dict):
        held = "nothing" if value is None else f"a {type(value).__name__}"
        raise InputError(
            f"{path} holds {held}: a recipe is a mapping of keys to values, for example `name: mine`"
        )
    return value


def _reason(error: Exception) -> str:
    """What is wrong with a YAML text and where, without the excerpt that PyYAML draws."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    return " ".join(str(error).split())


def _pair(text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not equals or not all(parts):
        raise InputError(f"--set {text!r} must be key=value, for example pretraining.steps=500")
    try:
        result: Any = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"--set {text!r}: the value is not valid YAML: {_reason(error)}") from error
    for part in reversed(parts):
        result = {part: result}
    return dict(result)


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = value
        if isinstance(old, dict) and isinstance(value, dict):
            # Settings of one kind of extractor or generator say nothing of another.
            same = "kind" not in value or value["kind"] == old.get("kind", value["kind"])
            merged[key] = _merge(old, value) if same else value
    return merged


def _sentence(error: ValidationError, merged: Mapping[str, Any], layers: Sequence[Layer]) -> str:
    told: dict[str, list[str]] = {}
    for item in error.errors(include_url=False):
        place = _place(item["loc"], merged)
        said = place[:-1] if item["type"] == "missing" else place
        told.setdefault(_origin(said, layers), []).append(_told(item, place)[:300])
    return "; ".join(f"{origin}: {'; '.join(rules)}" for origin, rules in told.items())


def _place(location: Sequence[int | str], merged: Mapping[str, Any]) -> list[str]:
    """The keys that lead to a value, without the kind that pydantic adds where it chooses by one."""
    place: list[str] = []
    value: Any = merged
    for part in location:
        inside = isinstance(value, Mapping)
        if inside and part not in value and value.get("kind") == part:
            continue
        value = value.get(part) if inside else None
        place.append(str(part))
    return place


def _told(item: ErrorDetails, place: Sequence[str]) -> str:
    name, kind, context = ".".join(place) or "the recipe", item["type"], item.get("ctx", {})
    if kind == "extra_forbidden":
        known = _keys(place[:-1])
        near = get_close_matches(place[-1], known, n=1)
        hint = (
            f": did you mean {near[0]}?"
            if near
            else f": the keys here are {', '.join(known)}"
            if known
            else ""
        )
        return f"{name} is not a key of a recipe{hint}"
    if kind == "missing":
        return f"{name} is missing: set it"
    if kind == "invalid_key":
        return f"{name} is not a key of a recipe: keys are words"
    if kind == "too_short":
        return f"{name} must hold at least {context['min_length']} entry"
    if kind == "union_tag_invalid":
        return f"{name}.kind must be one of {context['expected_tags']}, not {context['tag']!r}"
    rule = item["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        return f"{name}: {rule}" if place else rule
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        rule = "must be a mapping of keys to values"
    rule = rule.replace("Input should be", "must be", 1)
    return f"{name} {rule}, not {item['input']!r}"


def _keys(place: Sequence[str]) -> list[str]:
    """Keys of the recipe's model at a place; none where only the values decide which they are."""
    model: Any = Recipe
    for part in place:
        if _is_model(model) and part in model.model_fields:
            model = _without_none(model.model_fields[part].annotation)
        elif getattr(model, "__origin__", None) is dict:
            model = model.__args__[1]
        else:
            return []
    return list(model.model_fields) if _is_model(model) else []


def _without_none(annotation: Any) -> Any:
    """`Kind` of `Kind | None`."""
    kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
    return kinds[0] if len(kinds) == 1 and len(get_args(annotation)) == 2 else annotation


def _is_model(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, BaseModel)


def _origin(place: Sequence[str], layers: Sequence[Layer]) -> str:
    """The topmost layer that says something at a place, else the recipe itself."""
    return next((name for name, values in reversed(layers) if _says(values, place)), layers[0][0])


def _says(values: Any, place: Sequence[str]) -> bool:
    for part in place:
        if not isinstance(values, Mapping):
            return True  # a plain value where keys were wanted
        values = {str(key): value for key, value in values.items()}
        if part not in values:
            return False
        values = values[part]
    return True
