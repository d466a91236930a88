"""The decoder's shapes, its subjects, and what it keeps apart."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from fmri2img.errors import InputError
from fmri2img.models.config import DecoderConfig
from fmri2img.models.decoder import MultiSubjectDecoder, decay_groups
from fmri2img.models.linear import RidgeDecoder
from fmri2img.models.spaces import TargetSpace, target_space

Make = Callable[..., MultiSubjectDecoder]
VOXELS = {"subj02": 5, "subj01": 4, "subj10": 6}


def responses(rows: dict[str, int], seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(n, VOXELS[name], generator=generator) for name, n in rows.items()}


def unlike(decoder: torch.nn.Module, seed: int = 3) -> None:
    """Give every parameter a value of its own, those that start at zero too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))


def test_predictions_have_the_shapes_of_the_spaces(make_decoder: Make) -> None:
    predictions = make_decoder(VOXELS).predict(responses({"subj01": 2, "subj02": 3}))
    assert {name: tuple(value.shape) for name, value in predictions.features.items()} == {
        "map": (5, 2, 3),
        "words": (5, 4),
    }
    assert {name: tuple(value.shape) for name, value in predictions.retrieval.items()} == {"words": (5, 4)}
    assert predictions.latent.shape == (5, 12)


def test_rows_stand_in_the_order_of_sorted_subjects_however_they_are_given(make_decoder: Make) -> None:
    decoder = make_decoder(VOXELS)
    unlike(decoder)
    given = responses({"subj10": 1, "subj02": 2, "subj01": 3})
    together = decoder.predict(given)
    alone = [decoder.predict({name: given[name]}) for name in sorted(given)]
    assert decoder.subjects == sorted(VOXELS)
    for name, value in together.features.items():
        apart = torch.cat([part.features[name] for part in alone])
        torch.testing.assert_close(value, apart, rtol=1e-4, atol=1e-4)


def test_weights_load_by_subject_id_whatever_the_order_subjects_are_listed_in(
    make_decoder: Make, spaces: dict[str, TargetSpace]
) -> None:
    one = make_decoder(VOXELS)
    unlike(one)
    reverse = dict(reversed(list(spaces.items())))
    config = DecoderConfig(latent=12, hidden=7, blocks=1)
    other = config.build(dict(reversed(list(VOXELS.items()))), reverse).eval()
    other.load_state_dict(one.state_dict())
    given = responses({"subj01": 2, "subj02": 2, "subj10": 2})
    for name, value in one.predict(given).features.items():
        assert torch.equal(value, other.predict(given).features[name])


def test_ridge_maps_load_by_subject_id_too(spaces: dict[str, TargetSpace]) -> None:
    one = RidgeDecoder(VOXELS, spaces)
    other = RidgeDecoder(dict(reversed(list(VOXELS.items()))), spaces)
    other.load_state_dict(one.state_dict())
    given = responses({"subj01": 2, "subj02": 2, "subj10": 2})
    assert torch.equal(one.predict(given).features["map"], other.predict(given).features["map"])
    assert one.subjects == sorted(VOXELS)


@pytest.mark.parametrize("kind", ["decoder", "ridge"])
def test_a_subject_without_a_head_is_refused_by_name(
    make_decoder: Make, spaces: dict[str, TargetSpace], kind: str
) -> None:
    known = {"subj02": 5, "subj10": 6}
    decoder = make_decoder(known) if kind == "decoder" else RidgeDecoder(known, spaces)
    with pytest.raises(InputError, match=r"\['subj02', 'subj10'\], not for \['subj01'\]"):
        decoder.predict(responses({"subj01": 2, "subj02": 2}))


def test_a_decoder_without_subjects_or_spaces_is_refused(spaces: dict[str, TargetSpace]) -> None:
    for voxels, wanted in (({}, spaces), (VOXELS, {})):
        with pytest.raises(InputError, match="needs a subject and a feature space"):
            DecoderConfig().build(voxels, wanted)


def test_standardise_and_restore_are_inverse(make_decoder: Make) -> None:
    branch = make_decoder(VOXELS).branch("map")
    values = torch.randn(5, 2, 3)
    standardised = branch.standardise(values)
    assert standardised.shape == (5, 6)
    torch.testing.assert_close(standardised[:, 4], (values[:, 1, 1] - branch.mean[4]) / 2)
    torch.testing.assert_close(branch.restore(standardised), values)


def test_one_scale_for_a_space_keeps_its_geometry() -> None:
    std = np.array([[3.0, 4.0]], np.float32)
    assert target_space("s", np.zeros((1, 2)), std).scale == pytest.approx(np.sqrt(12.5))
    assert target_space("s", np.zeros((1, 2)), 0 * std).scale == 1.0


def test_new_subjects_leave_everything_shared_as_it_is(make_decoder: Make) -> None:
    decoder = make_decoder(VOXELS)
    before = {k: v.clone() for k, v in decoder.state_dict().items() if not k.startswith("heads.")}
    decoder.with_subjects({"subj77": 9})
    assert decoder.subjects == ["subj77"]
    after = {k: v for k, v in decoder.state_dict().items() if not k.startswith("heads.")}
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_every_trained_parameter_is_in_one_group_and_only_matrices_decay(make_decoder: Make) -> None:
    decoder = make_decoder(VOXELS)
    frozen = decoder.heads["subj02"].weight
    assert isinstance(frozen, torch.nn.Parameter)
    frozen.requires_grad_(False)
    groups = decay_groups(decoder, 0.7)
    members = [(id(p), group["weight_decay"]) for group in groups for p in group["params"]]  # type: ignore[attr-defined]
    wanted = [(id(p), 0.7 if p.ndim > 1 else 0.0) for p in decoder.parameters() if p.requires_grad]
    assert sorted(members) == sorted(wanted)


def test_no_dropout_when_predicting(make_decoder: Make) -> None:
    decoder = make_decoder(VOXELS)
    unlike(decoder)
    given = responses({"subj01": 4})
    assert torch.equal(decoder.predict(given).features["map"], decoder.predict(given).features["map"])
