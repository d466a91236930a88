"""The linear baseline: ridge regression from one subject's voxels to features, in the same folder as any decoder."""

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from fmri2img.errors import InputError
from fmri2img.models.closed_form import PictureRows
from fmri2img.models.decoder import Predictions
from fmri2img.models.pretrained import Layout, Pretrained
from fmri2img.models.ridge import fit_ridge
from fmri2img.models.spaces import TargetSpace


class RidgeDecoder(Pretrained):
    """Voxels to features by one matrix a subject and space. Inputs and outputs are those of `MultiSubjectDecoder`."""

    kind = "ridge"

    def __init__(self, voxels: Mapping[str, int], spaces: Mapping[str, TargetSpace]) -> None:
        super().__init__()
        self.directed = {name for name, space in spaces.items() if space.directed}
        self.shapes = {name: space.shape for name, space in spaces.items()}
        self.maps = nn.ModuleDict(
            {
                s: nn.ModuleDict({n: nn.Linear(v, sp.size) for n, sp in spaces.items()})
                for s, v in sorted(voxels.items())
            }
        )
        for name, space in spaces.items():
            self.register_buffer(f"mean_{name}", torch.tensor(space.mean).flatten())
            self.register_buffer(f"scale_{name}", torch.tensor(space.scale))

    @property
    def subjects(self) -> list[str]:
        """Subject ids in the order of a batch's rows."""
        return list(self.maps)

    def layout(self) -> Layout:
        """Subjects and spaces; there are no other sizes."""
        voxels = {}
        for name, maps in self.maps.items():
            assert isinstance(maps, nn.ModuleDict)
            voxels[name] = int(next(iter(maps.values())).in_features)  # type: ignore[arg-type]
        return Layout(voxels, dict(self.shapes), set(self.directed), {})

    @classmethod
    def make(
        cls, voxels: Mapping[str, int], spaces: Mapping[str, TargetSpace], sizes: Mapping[str, Any]
    ) -> Self:
        """A decoder without a fit."""
        return cls(voxels, spaces, **sizes)

    @torch.no_grad()
    def fit(self, subject: str, rows: PictureRows, *, seed: int) -> None:
        """Fit all maps of one subject, one cross-validated penalty a feature."""
        maps = self.maps[subject]
        assert isinstance(maps, nn.ModuleDict)
        for name, layer in maps.items():
            assert isinstance(layer, nn.Linear)
            mean, scale = getattr(self, f"mean_{name}"), getattr(self, f"scale_{name}")
            targets = (torch.from_numpy(rows.features[name]).flatten(1) - mean) / scale
            fit = fit_ridge(rows.responses, targets.numpy(), groups=rows.groups, seed=seed)
            layer.weight.copy_(torch.from_numpy(fit.weight.T.copy()))
            layer.bias.copy_(torch.from_numpy(fit.bias))

    @torch.no_grad()
    def predict(self, responses: Mapping[str, Tensor]) -> Predictions:
        """Predictions in the units of each space; the latent is empty."""
        unknown = sorted(set(responses) - set(self.subjects))
        if unknown or not responses:
            raise InputError(
                f"this decoder has maps for {self.subjects}, not for {unknown}: fit the baseline on them first"
            )
        rows: dict[str, list[Tensor]] = {name: [] for name in self.shapes}
        for subject in self.subjects:
            if subject in responses:
                maps = self.maps[subject]
                assert isinstance(maps, nn.ModuleDict)
                for name, layer in maps.items():
                    rows[name].append(layer(responses[subject]))
        retrieval = {name: torch.cat(parts) for name, parts in rows.items()}
        features = {
            name: (value * getattr(self, f"scale_{name}") + getattr(self, f"mean_{name}")).unflatten(
                1, self.shapes[name]
            )
            for name, value in retrieval.items()
        }
        directions = {name: value for name, value in retrieval.items() if name in self.directed}
        return Predictions(features, directions, torch.zeros(len(next(iter(retrieval.values()))), 0))
