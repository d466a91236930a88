"""The feature job: compute a recipe's spaces once and cache them as columns of the data set."""

from pathlib import Path

from fmri2img.console import stage
from fmri2img.datasets import Dataset, add_feature_space
from fmri2img.datasets.remote import refuse_address
from fmri2img.errors import InputError
from fmri2img.features.extractors import Imported, made_by
from fmri2img.trainer.config import Recipe


def check_imported(dataset: Dataset, name: str) -> None:
    """Raise InputError unless the data set has imported features of that name."""
    entry = dataset.feature_spaces.get(name)
    if entry is None or not made_by(Imported(), entry.extractor):
        raise InputError(
            f"{dataset.path} has no imported features {name}: bring them with "
            f"`fmri2img features import {dataset.path} --space {name} --from FILE:KEY`"
        )


def cache_features(recipe: Recipe, data: Path) -> Dataset:
    """Add every space of the recipe that the data set does not have yet.

    Raises InputError when a space of that name was made otherwise, or when the pictures lack what an extractor needs.
    """
    refuse_address(data, "adding features")
    dataset = Dataset.open(data)
    for name, space in recipe.spaces.items():
        if isinstance(space.extractor, Imported):
            check_imported(dataset, name)
            continue
        with stage(f"Features {name}", "pictures") as tell:
            dataset = add_feature_space(
                data,
                name=name,
                shape=space.extractor.shape,
                dtype="float32",
                extractor=space.extractor.record(),
                compute=space.extractor.load(),
                progress=lambda what, done, total, tell=tell: tell(done, total),  # type: ignore[misc]
            )
    return dataset
