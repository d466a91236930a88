"""Small decoders and subjects whose responses come from one latent that all of them share."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from fmri2img.models.closed_form import PictureRows
from fmri2img.models.config import DecoderConfig
from fmri2img.models.decoder import MultiSubjectDecoder
from fmri2img.models.spaces import TargetSpace


def spaces_of(scale: float = 2.0) -> dict[str, TargetSpace]:
    """Two spaces: `map` (2, 3), and `words` (4,), which is directed; means are not zero."""
    generator = np.random.default_rng(5)
    mean = {
        "words": generator.normal(size=4).astype(np.float32),
        "map": generator.normal(size=(2, 3)).astype(np.float32),
    }
    return {name: TargetSpace(name, m.shape, m, scale, name == "words") for name, m in mean.items()}


@pytest.fixture
def spaces() -> dict[str, TargetSpace]:
    return spaces_of()


@pytest.fixture
def make_decoder() -> Callable[..., MultiSubjectDecoder]:
    """`make_decoder({"subj01": 5}, latent=12)`: a decoder of the two spaces, in evaluation mode."""

    def make(voxels: dict[str, int], *, latent: int = 12, seed: int = 0) -> MultiSubjectDecoder:
        torch.manual_seed(seed)
        return DecoderConfig(latent=latent, hidden=7, blocks=1, dropout=0.3).build(voxels, spaces_of()).eval()

    return make


@pytest.fixture
def make_rows() -> Callable[..., PictureRows]:
    """`make_rows(n, voxels, seed)`: random responses that tell something of random features."""

    def make(n: int, voxels: int, seed: int = 0) -> PictureRows:
        generator = np.random.default_rng(seed)
        responses = generator.normal(1, 2, (n, voxels)).astype(np.float32)
        hidden = responses @ generator.normal(size=(voxels, 10)) / 2 + generator.normal(size=(n, 10))
        words, shown = hidden[:, :4], hidden[:, 4:].reshape(n, 2, 3)
        features = {"words": words.astype(np.float32), "map": shown.astype(np.float32)}
        ids = np.arange(n)
        return PictureRows(responses, features, ids, ids)

    return make


@dataclass
class World:
    """Pictures have a latent of three dimensions, which every subject's voxels read with a map of their own.

    Features are a map of the latent, and several times as much that no brain says anything of.
    """

    latent: np.ndarray
    features: dict[str, np.ndarray]
    expected: dict[str, np.ndarray]

    @classmethod
    def make(cls, pictures: int) -> "World":
        generator = np.random.default_rng(11)
        latent = generator.normal(size=(pictures, 3))
        features, expected = {}, {}
        for name, shape in (("words", (4,)), ("map", (2, 3))):
            told = latent @ generator.normal(size=(3, int(np.prod(shape))))
            noise = 4 * generator.normal(size=told.shape)
            expected[name] = told.reshape(-1, *shape).astype(np.float32)
            features[name] = (told + noise).reshape(-1, *shape).astype(np.float32)
        return cls(latent, features, expected)

    def seen_by(self, subject: int, voxels: int, pictures: slice) -> PictureRows:
        """What one subject measures when it sees some of the pictures once."""
        weight = np.random.default_rng([subject, 0]).normal(size=(3, voxels))
        latent = self.latent[pictures]
        noise = np.random.default_rng([subject, 1]).normal(size=(len(latent), voxels))
        ids = np.arange(len(self.latent))[pictures]
        features = {name: value[pictures] for name, value in self.features.items()}
        return PictureRows((latent @ weight + noise).astype(np.float32), features, ids, ids)


@pytest.fixture
def world() -> World:
    return World.make(1200)
