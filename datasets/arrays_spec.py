"""The YAML file that says which of somebody's arrays is what; `docs/examples/miyawaki2008.yaml` is one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    model_validator,
)

from fmri2img.errors import InputError

Reference = Annotated[str, Field(min_length=1)]
BySubject = dict[str, list[NonNegativeInt]]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: Any) -> Any:
        unknown = sorted(set(data) - set(cls.model_fields)) if isinstance(data, dict) else []
        if unknown:
            raise ValueError(f"unknown key {unknown[0]!r}; the keys here are {', '.join(cls.model_fields)}")
        return data


class PicturesSpec(_Strict):
    """The pictures: array `(n, height, width)` or `(n, height, width, 3)`.

    `scale` gives the values shown as black and as full brightness; without it the array must be uint8.
    """

    array: Reference
    scale: tuple[float, float] | None = None
    captions: Reference | None = None


class SubjectSpec(_Strict):
    """One subject: responses `(trials, voxels)`, picture index, session or run `(trials,)`, voxel table.

    Runs are used as sessions where there are no sessions; without both, all trials are of session 1.
    `order` sorts the trials of a session in time; without it they are in the order of the rows.
    """

    responses: Reference
    pictures: Reference
    sessions: Reference | None = None
    runs: Reference | None = None
    order: Reference | None = None
    voxel_table: dict[str, Reference] = {}

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if self.sessions and self.runs:
            raise ValueError("give sessions or runs, not both: one of them says what is normalised together")
        return self


class SplitSpec(_Strict):
    """Which trials are test trials: those of test pictures and those of test sessions.

    Each is a list for every subject or lists by subject. Training trials of `exclude_pictures` are left out.
    Pictures are counted from 0 and sessions from 1, whatever the arrays do.
    """

    test_pictures: list[NonNegativeInt] | BySubject = []
    test_sessions: list[PositiveInt] | BySubject = []
    exclude_pictures: BySubject = {}


class ArraysSpec(_Strict):
    """The YAML file: every reference is `FILE:KEY`, the file relative to `root` (default: the YAML's folder).

    `first_picture` and `first_session` are the numbers by which the arrays count the first of each.
    """

    name: Annotated[str, Field(min_length=1)]
    terms: str
    provenance: dict[str, str] = {}
    root: str = "."
    pictures: PicturesSpec
    subjects: Annotated[dict[str, SubjectSpec], Field(min_length=1)]
    first_picture: Literal[0, 1] = 0
    first_session: Literal[0, 1] = 1
    split: SplitSpec = SplitSpec()
    normalise: Literal["session", "pooled", "none"] = "session"

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        root: str | Path | None = None,
        overrides: Mapping[str, Any] | Sequence[str] = (),
    ) -> ArraysSpec:
        """Read a YAML file.

        Args:
            path: the file.
            root: folder of the arrays, instead of the one the file says.
            overrides: dotted keys with values, as a mapping or as `split.test_sessions=[3]` with YAML values.

        Raises:
            InputError: naming the key that cannot be used and why.
        """
        path = Path(path)
        try:
            plain = yaml.safe_load(path.read_text("utf-8"))
        except (OSError, yaml.YAMLError, ValueError) as error:  # a date that is none is a ValueError
            reason = " ".join(str(error).split())
            raise InputError(
                f"{path} cannot be read: {reason}: give a YAML file that describes arrays."
            ) from None
        if not isinstance(plain, dict):
            raise InputError(f"{path} holds no keys: describe name, terms, pictures and subjects in it.")
        for key, value in _pairs(overrides).items():
            _set(plain, key, value)
        where = Path(root) if root is not None else path.parent / str(plain.get("root", "."))
        try:
            return cls.model_validate(plain | {"root": str(where.absolute())})
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            message = first["msg"].removeprefix("Value error, ")
            raise InputError(f"{path}: {place}: {message}.".replace(": : ", ": ")) from None


def _pairs(overrides: Mapping[str, Any] | Sequence[str]) -> dict[str, Any]:
    if isinstance(overrides, Mapping):
        return dict(overrides)
    pairs = {}
    for text in overrides:
        key, sign, value = text.partition("=")
        try:
            pairs[key.strip()] = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError):
            sign = ""
        if not sign or not key.strip():
            raise InputError(f"{text!r} is no override: write KEY=VALUE, such as split.test_sessions=[3].")
    return pairs


def _set(plain: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    place = plain
    for part in path:
        inner = place.setdefault(part, {})
        if not isinstance(inner, dict):
            raise InputError(
                f"{key!r}: {part} is not a group of keys, so nothing in it can be set: name another key."
            )
        place = inner
    place[last] = value
