"""`fmri2img checkpoint`: look at checkpoints, prove them whole, take in published ones, hand finished ones on."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import OmitSubcommandPrefixes, Positional, subcommand

from fmri2img.commands.checkpoint_import import CheckpointImport
from fmri2img.console import output, stage


@dataclass(frozen=True)
class CheckpointInspect:
    """Say what a run, a checkpoint or an exported folder is, by its manifest and headers."""

    path: Positional[Path]
    """a run folder, one of its step-... folders, or an exported folder"""
    json: bool = False
    """all of it as JSON"""

    def run(self) -> None:
        from fmri2img.checkpoints_schema import describe

        told = describe(self.path)
        if self.json:
            return output().print(
                json.dumps(told, indent=2, ensure_ascii=False), markup=False, soft_wrap=True
            )
        import yaml

        text = yaml.safe_dump(_readable(told), sort_keys=False, allow_unicode=True, width=1000)
        output().print(text.rstrip(), markup=False)


@dataclass(frozen=True)
class CheckpointVerify:
    """Read every byte of every checkpoint of a run, list all that is wrong, and say which one a reader takes."""

    path: Positional[Path]
    """a run folder, one of its step-... folders, or an exported folder"""

    def run(self) -> None:
        from fmri2img import checkpoints_schema as schema
        from fmri2img.errors import DamageError

        if not schema.is_step(self.path) and schema.is_exported(self.path):
            wrong = schema.verify_exported(self.path)
            for line in wrong:
                output().print(line, markup=False)
            if wrong:
                raise DamageError(f"{self.path} is damaged, as listed above: get or export it again")
            return output().print(f"{self.path}: every byte is as it was written", markup=False)
        with stage("Verifying", "checkpoints") as tell:
            checked = schema.check(self.path, progress=lambda done, total, what: tell(done, total, what))
        taken = next((one for one in checked if one.usable), None)
        for one in checked:
            fate = (
                "a reader takes it" if one is taken else "whole" if one.usable else "a reader passes it over"
            )
            output().print(f"{one.path.name}: {fate}", markup=False)
            for problem in one.problems:
                output().print(f"  {problem}", markup=False)
        for path in schema.left_behind(self.path):
            output().print(
                f"{path.name}: left half written; training removes it at its next start", markup=False
            )
        damaged = [one.path.name for one in checked if not one.usable]
        if damaged:
            then = "none is left" if taken is None else f"a reader takes {taken.path.name}"
            raise DamageError(
                f"{self.path} has {len(damaged)} damaged of {len(checked)} checkpoints ({', '.join(damaged)}), {then}: "
                "restore the files listed above or remove these folders"
            )
        output().print(f"{self.path}: every byte of its checkpoints is as it was written", markup=False)


@dataclass(frozen=True)
class CheckpointMigrate:
    """Write checkpoints of an old schema version anew in the present one, in another folder."""

    path: Positional[Path]
    """a run folder or one of its step-... folders"""
    out: Path
    """the new run folder"""

    def run(self) -> None:
        from fmri2img.checkpoints_schema import SCHEMA_VERSION, upgrade

        with stage("Migrating", "checkpoints") as tell:
            written = upgrade(self.path, self.out, progress=lambda done, total, what: tell(done, total, what))
        if not written:
            told = f"{self.path} is of schema version {SCHEMA_VERSION}, the newest: nothing to migrate"
        else:
            names = ", ".join(path.name for path in written)
            told = f"{self.out} holds {names} in schema version {SCHEMA_VERSION}; {self.path} is as it was"
        output().print(told, markup=False)


@dataclass(frozen=True)
class CheckpointExport:
    """Hand a finished decoder on: weights, a config that suffices to build it, and a model card."""

    path: Positional[Path]
    """a run folder, whose newest whole checkpoint is meant, or a step-... folder"""
    out: Positional[Path]
    """the folder to make"""
    to: Literal["hf-folder", "mindeye1", "mindeye2"] = "hf-folder"
    """a folder in the style of the Hugging Face hub, for from_pretrained; or one with the last.pth of published code"""
    weights: Literal["model", "ema"] = "model"
    """the finished model's, or the averaged ones that the run kept"""
    license: str = "other"
    """the licence of the weights, an identifier of the hub; they inherit the terms of their training data"""

    def run(self) -> None:
        from fmri2img import checkpoints_schema as schema
        from fmri2img.models.loading import load_decoder

        found = schema.resolve(self.path)
        for line in found.warnings:
            output().print(line, markup=False)
        name = {"model": schema.MODEL_NAME, "ema": schema.EMA_NAME}[self.weights]
        decoder = load_decoder(found.path, weights=name)
        if self.to != "hf-folder":
            return self._as_published(decoder, self.to)
        decoder.save_pretrained(self.out, found=found, license=self.license)
        output().print(f"{found.path} exported to {self.out}", markup=False)

    def _as_published(self, decoder: Any, generation: Literal["mindeye1", "mindeye2"]) -> None:
        import torch

        from fmri2img.errors import InputError
        from fmri2img.files import staged_folder
        from fmri2img.models.mindeye_exchange import outgoing

        subjects, tensors = outgoing(decoder, generation)
        if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            raise InputError(f"{self.out} is there already and nothing is written over: give another folder")
        with staged_folder(self.out) as staging:
            # `subjects` is ours: published files do not say whose heads they hold.
            whole = {
                "epoch": 0,
                "model_state_dict": tensors,
                "train_losses": [],
                "test_losses": [],
                "lrs": [],
            }
            torch.save(whole | {"subjects": subjects}, staging / "last.pth")
        output().print(
            f"{self.out / 'last.pth'}: heads of {', '.join(subjects)}, in this order", markup=False
        )


CheckpointAction = (
    Annotated[CheckpointInspect, subcommand("inspect")]
    | Annotated[CheckpointVerify, subcommand("verify")]
    | Annotated[CheckpointMigrate, subcommand("migrate")]
    | Annotated[CheckpointExport, subcommand("export")]
    | Annotated[CheckpointImport, subcommand("import")]
)


@dataclass(frozen=True)
class Checkpoint:
    """Look after checkpoints: inspect, verify, migrate, export, import."""

    action: OmitSubcommandPrefixes[CheckpointAction]

    def run(self) -> None:
        self.action.run()


def _readable(told: dict[str, Any]) -> dict[str, Any]:
    """The same with one line a tensor, and without what is empty."""
    shown = {name: value for name, value in told.items() if value not in (None, {}, [])}
    if isinstance(shown.get("newest"), dict):
        shown["newest"] = _readable(shown["newest"])
    for space in shown.get("feature_spaces", {}).values():
        space["shape"] = " x ".join(map(str, space["shape"])) or "scalar"
    tables = shown.get("tensors", {})
    for file, table in tables.items():
        tables[file] = {
            name: f"{info['dtype']} {tuple(info['shape'])} {info['bytes']} bytes"
            if isinstance(info, dict)
            else info
            for name, info in table.items()
        }
    return shown
