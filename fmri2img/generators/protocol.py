"""What a generator promises: a light configuration that a recipe holds, and the models it loads once a worker."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from fmri2img.errors import InputError


class LoadedGenerator(Protocol):
    """A generator with its models in memory."""

    @property
    def spaces(self) -> list[str]:
        """The feature spaces that it reads."""
        ...

    def check(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """Raise InputError unless {space: shape of one item} holds what it reads, in shapes that it can take."""
        ...

    def generate(self, features: Mapping[str, Tensor], generators: Sequence[torch.Generator]) -> Tensor:
        """features {space: (B, *shape)} in each space's own units to (B, 3, height, width) float32 in [0, 1].

        All noise of item b is drawn from `generators[b]`, a CPU generator, so a picture knows nothing of its
        neighbours: at the same place of a batch of the same size its bytes are the same whoever they are.
        """
        ...

    def provenance(self) -> dict[str, Any]:
        """What decides the pictures beside features and configuration: {folder/file: SHA-256} of the weights."""
        ...


class Generator(Protocol):
    """The configuration of a generator."""

    @property
    def spaces(self) -> list[str]:
        """The feature spaces that it reads."""
        ...

    def load(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> LoadedGenerator:
        """Read the models from disk to `device`, which compute in `dtype`. Raises InputError for what is missing."""
        ...


def shape_of(shapes: Mapping[str, Sequence[int]], space: str) -> tuple[int, ...]:
    """The shape of one item's features; raises InputError for a space that the decoder does not predict."""
    if space not in shapes:
        raise InputError(
            f"the generator needs the space {space}, the decoder predicts {sorted(shapes)}: name another in the "
            "recipe, or train one that predicts it"
        )
    return tuple(shapes[space])


def shapes_of(features: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """{space: shape of one item} of a batch of features."""
    return {name: tuple(value.shape[1:]) for name, value in features.items()}
