"""Decoders come back from a checkpoint folder as they were, and damaged ones do not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fmri2img import checkpoints_schema as schema
from fmri2img.errors import DamageError, InputError
from fmri2img.models.decoder import MultiSubjectDecoder
from fmri2img.models.linear import RidgeDecoder
from fmri2img.models.loading import load_decoder
from fmri2img.models.spaces import TargetSpace
from fmri2img.trainer.state import Identity, write_step

VOXELS = {"subj02": 5, "subj01": 4}


@pytest.fixture
def store(tmp_path: Path, spaces: dict[str, TargetSpace]) -> Callable[..., Path]:
    """Write a decoder as step 3 of a run and return the step folder."""

    def write(
        decoder: torch.nn.Module, kind: str = "decoder", tensors: dict[str, torch.Tensor] | None = None
    ) -> Path:
        recipe = {
            "spaces": {
                name: {"losses": {"softclip": {}} if space.directed else {}} for name, space in spaces.items()
            },
            "decoder": {"latent": 12, "hidden": 7, "blocks": 1, "dropout": 0.3},
        }
        identity = Identity(
            {"recipe": recipe},
            "tiny",
            {n: schema.SubjectRecord(voxels=v, dataset="d", fingerprint="0" * 64) for n, v in VOXELS.items()},
            {
                n: schema.FeatureSpaceRecord(shape=space.shape, dtype="float32", extractor={"kind": "none"})
                for n, space in spaces.items()
            },
        )
        content = dict(decoder.state_dict()) if tensors is None else tensors
        folder = tmp_path / "run" / schema.CHECKPOINTS_FOLDER
        files = {schema.MODEL_NAME: content}
        return write_step(folder, 3, schema.new_token(), files, identity, metrics={}, kind=kind)

    return write


def given() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(3, width, generator=generator) for name, width in VOXELS.items()}


@pytest.mark.parametrize("kind", ["decoder", "ridge"])
def test_a_decoder_predicts_after_loading_what_it_predicted_before(
    store: Callable[..., Path], make_decoder: Any, spaces: dict[str, TargetSpace], kind: str
) -> None:
    made = make_decoder(VOXELS) if kind == "decoder" else RidgeDecoder(VOXELS, spaces)
    step = store(made, kind)
    for path in (step, step.parent.parent):
        loaded = load_decoder(path)
        assert isinstance(loaded, MultiSubjectDecoder if kind == "decoder" else RidgeDecoder)
        assert not loaded.training
        before, after = made.predict(given()), loaded.predict(given())
        for name in spaces:
            assert torch.equal(before.features[name], after.features[name])
        assert before.retrieval.keys() == after.retrieval.keys() == {"words"}
        assert torch.equal(before.retrieval["words"], after.retrieval["words"])


@pytest.mark.parametrize("place", [0, 200, -1])
def test_one_changed_byte_of_the_weights_is_refused(
    store: Callable[..., Path], make_decoder: Any, place: int
) -> None:
    step = store(make_decoder(VOXELS))
    weights = step / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[place] ^= 1
    weights.write_bytes(content)
    with pytest.raises(DamageError, match=r"model\.safetensors"):
        load_decoder(step)


def test_weights_that_lack_a_tensor_are_refused(store: Callable[..., Path], make_decoder: Any) -> None:
    made = make_decoder(VOXELS)
    tensors = {name: value for name, value in made.state_dict().items() if name != "heads.subj01.bias"}
    with pytest.raises(DamageError, match=r"do not fit the manifest: .*heads\.subj01\.bias"):
        load_decoder(store(made, tensors=tensors))


def test_a_folder_without_a_checkpoint_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no checkpoint"):
        load_decoder(tmp_path)
