"""`fmri2img features import`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from fmri2img.commands.building import names_of
from fmri2img.console import output, stage
from fmri2img.errors import InputError


@dataclass(frozen=True)
class FeaturesImport:
    """Add a feature space that somebody already computed: rows of a file, matched to pictures by nsd_id."""

    from_: Annotated[tuple[str, ...], arg(name="from", metavar="FILE:KEY [FILE:KEY ...]")]
    """arrays (pictures, ...) in HDF5, npz or safetensors files, or FILE.npy; several together hold all pictures"""
    ids: Annotated[tuple[str, ...], arg(metavar="FILE:KEY [FILE:KEY ...]")] = ()
    """the nsd_id of each row, an array for each of --from; a row's number is its nsd_id otherwise"""
    design: Path | None = None
    """nsd_expdesign.mat, for arrays of training and test pictures in the order first seen, as Brain-Diffuser's"""
    subjects: tuple[str, ...] = ()
    """with --design: whose they are; --from then has a training and a test array of each"""

    def run(self, data: Path, spaces: Sequence[str], dtype: str | None) -> None:
        """Import one space."""
        from fmri2img.datasets.feature_import import import_features

        if len(spaces) != 1:
            raise InputError(
                f"features import brings one feature space and --space names {len(spaces)}: give it once"
            )
        sources, name = self._sources(), spaces[0]
        with stage(f"Features {name}", "pictures") as tell:
            import_features(
                data,
                name=name,
                sources=sources,
                dtype=dtype,
                progress=lambda what, done, total: tell(done, total),
            )
        output().print(f"Feature space {name} in {data}")

    def _sources(self) -> list[Any]:
        from fmri2img.datasets.feature_import import FeatureRows, read_ids

        if self.design is not None:
            return self._first_seen(self.design)
        if self.subjects:
            raise InputError(
                "--subjects says whose arrays those of --from are, by the --design: give that too"
            )
        if not self.ids:
            return [FeatureRows(reference) for reference in self.from_]
        if len(self.ids) != len(self.from_):
            raise InputError(
                f"--ids names {len(self.ids)} arrays and --from {len(self.from_)}: give the ids of each, in order"
            )
        return [
            FeatureRows(reference, read_ids(ids), Path(ids).name)
            for reference, ids in zip(self.from_, self.ids, strict=True)
        ]

    def _first_seen(self, path: Path) -> list[Any]:
        from fmri2img.datasets.feature_import import FeatureRows
        from fmri2img.datasets.nsd.design import Design
        from fmri2img.datasets.prepared.braindiffuser import first_seen

        names = names_of(self.subjects)
        if self.ids or len(self.from_) != 2 * len(names) or not names:
            raise InputError(
                f"--design with --subjects {' '.join(names) or '(none)'} needs a training and a test array of each "
                f"in --from, which has {len(self.from_)}, and no --ids"
            )
        design, arrays = Design.load(path), iter(self.from_)
        return [
            FeatureRows(next(arrays), ids, f"{part} pictures in the order first seen by {subject}")
            for subject in names
            for part, ids in zip(("training", "test"), first_seen(design, subject), strict=True)
        ]
