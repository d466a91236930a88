"""`fmri2img checkpoint import`: a published MindEye or MindEye2 file becomes a checkpoint like any other."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional, UseAppendAction

from fmri2img.console import output

if TYPE_CHECKING:
    from fmri2img.models.mindeye_weights import Sizes
    from fmri2img.trainer.config import Recipe


@dataclass(frozen=True)
class CheckpointImport:
    """Make a checkpoint of a published last.pth, to finetune, to reconstruct with, or to export again."""

    generation: Positional[Literal["mindeye1", "mindeye2"]]
    """which published code trained it"""
    path: Positional[Path]
    """the file: last.pth, or DeepSpeed's mp_rank_00_model_states.pt"""
    out: Path
    """the run folder to make"""
    subjects: tuple[str, ...] = ()
    """whose the heads are, in the order of training; needed where voxel counts do not tell"""
    data: Path | None = None
    """the data set folder that the heads read; without it, new subjects can be finetuned, and nothing be "
    "reconstructed"""
    recipe: str | None = None
    """a shipped recipe's name, or the path of a .yaml file; the published one of these sizes otherwise"""
    config: Path | None = None
    """a YAML file whose values go over the recipe's"""
    set: UseAppendAction[tuple[str, ...]] = ()
    """key.key=value, over everything else; may be given several times"""

    def run(self) -> None:
        from fmri2img import checkpoints_schema as schema
        from fmri2img.commands.building import names_of as split
        from fmri2img.errors import InputError
        from fmri2img.files import sha256_file
        from fmri2img.models.mindeye_exchange import incoming, names_of, subjects_of
        from fmri2img.models.mindeye_files import read_published
        from fmri2img.models.mindeye_weights import sizes_of
        from fmri2img.trainer.state import Identity, checkpoints_of, write_step

        if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            raise InputError(f"{self.out} is there already and nothing is written over: give another --out")
        weights = read_published(self.path)
        sizes = sizes_of(weights, self.generation)
        subjects = subjects_of(sizes.voxels, split(self.subjects))
        recipe = self._recipe(sizes)
        directed = {name for name, space in recipe.spaces.items() if space.directed}
        names = names_of(list(recipe.spaces), directed, recipe.decoder.maps)
        made = incoming(
            weights,
            sizes,
            subjects,
            names,
            recipe.decoder,
            {name: space.factor for name, space in recipe.spaces.items()},
            recipe.spaces[names.tokens].prior,
        )
        dataset, fingerprint = self._data(made.voxels, made.shapes)
        identity = Identity(
            {
                "recipe": recipe.model_dump(mode="json"),
                "subjects": sorted(subjects),
                "sessions": None,
                "fingerprint": fingerprint,
                "imported": {"file": self.path.name, "sha256": sha256_file(self.path)},
            },
            recipe.name,
            {
                name: schema.SubjectRecord(voxels=count, dataset=dataset, fingerprint=fingerprint)
                for name, count in made.voxels.items()
            },
            {
                name: schema.FeatureSpaceRecord(
                    shape=made.shapes[name],
                    dtype="float32",
                    extractor=space.extractor.model_dump(mode="json"),
                )
                for name, space in recipe.spaces.items()
            },
        )
        files = {schema.MODEL_NAME: made.tensors}
        step = write_step(checkpoints_of(self.out), 0, schema.new_token(), files, identity, metrics={})
        heads = ", ".join(f"{name} ({count} voxels)" for name, count in made.voxels.items())
        output().print(f"{step}: {recipe.name} with heads of {heads}", markup=False)

    def _recipe(self, sizes: "Sizes") -> "Recipe":
        """The recipe, with the sizes that the weights have and what the user sets over them."""
        from fmri2img.config import load_recipe
        from fmri2img.errors import InputError
        from fmri2img.models.mindeye_exchange import names_of

        name = self.recipe
        if name is None:
            name = self.generation
            if self.generation == "mindeye2":
                name += ("-1024" if sizes.latent == 1024 else "") + ("" if sizes.edge else "-nolow")
        draft = load_recipe(name, config=self.config, values=self.set)
        if draft.decoder.architecture != self.generation:
            raise InputError(
                f"recipe {name} has decoder.architecture {draft.decoder.architecture}, the weights are of "
                f"{self.generation}: take a recipe of it, or leave --recipe out"
            )
        directed = {space for space, told in draft.spaces.items() if told.directed}
        tokens = names_of(list(draft.spaces), directed, draft.decoder.maps).tokens
        told: dict[str, Any] = {"decoder.latent": sizes.latent}
        if sizes.hidden:
            told["decoder.hidden"] = sizes.hidden
        if self.generation == "mindeye1":
            told["decoder.blocks"] = sizes.blocks
        for key, value in sizes.prior.items():
            told[f"spaces.{tokens}.prior.{key}"] = value
        if not sizes.prior:
            told |= {f"spaces.{tokens}.prior": "null", f"spaces.{tokens}.losses.prior": "null"}
        values = (*(f"{key}={value}" for key, value in told.items()), *self.set)
        return load_recipe(name, config=self.config, values=values)

    def _data(self, voxels: dict[str, int], shapes: dict[str, tuple[int, ...]]) -> tuple[str, str]:
        """Name and fingerprint of the data set that the heads read, after it was found to fit."""
        from fmri2img.datasets import Dataset
        from fmri2img.errors import InputError

        if self.data is None:
            return "unknown", "unknown"
        dataset = Dataset.open(self.data)
        for subject, count in voxels.items():
            if subject in dataset.subjects and dataset.inputs(subject) != count:
                raise InputError(
                    f"{self.data} has {dataset.inputs(subject)} voxels of {subject}, its head reads {count}: pass "
                    f"the data set "
                    "that it was trained on, or leave --data out"
                )
        for name, shape in shapes.items():
            entry = dataset.feature_spaces.get(name)
            if entry is not None and tuple(entry.shape) != shape:
                raise InputError(
                    f"{self.data} has features {name} of shape {tuple(entry.shape)}, the weights predict {shape}: "
                    f"pass the "
                    "data set with those that they were trained on"
                )
        return dataset.manifest.name, dataset.fingerprint
