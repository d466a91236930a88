"""Closed-form starts: the decoder that is ridge at step 0, and the head that joins a shared latent."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fmri2img.errors import InputError
from fmri2img.models import closed_form
from fmri2img.models.closed_form import PictureRows, fit_alignment, fit_head, start_as_ridge
from fmri2img.models.decoder import MultiSubjectDecoder
from fmri2img.models.linear import RidgeDecoder
from fmri2img.models.ridge import RidgeFit, fit_ridge
from fmri2img.models.spaces import TargetSpace

Make = Callable[..., MultiSubjectDecoder]
SIZES = {"map": 6, "words": 4}


def outputs(decoder: MultiSubjectDecoder, subject: str, rows: PictureRows) -> np.ndarray:
    """Standardised predictions of both spaces side by side, as the losses see them."""
    with torch.no_grad():
        _, features, *_ = decoder({subject: torch.from_numpy(rows.responses)})
    return torch.cat([features[name] for name in SIZES], 1).numpy()


def ridge(decoder: MultiSubjectDecoder, rows: PictureRows) -> RidgeFit:
    """A ridge fit of one subject's standardised features, made without `start_as_ridge`."""
    targets = decoder.standardise({n: torch.from_numpy(v) for n, v in rows.features.items()}).numpy()
    return fit_ridge(rows.responses, targets, groups=rows.groups, seed=0)


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """The mean over columns of the correlation over rows."""
    one, other = one.reshape(len(one), -1), other.reshape(len(other), -1)
    return float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(one.T, other.T, strict=True)]))


def test_with_a_latent_as_wide_as_the_features_the_start_is_each_subjects_ridge(
    make_decoder: Make, make_rows: Any
) -> None:
    rows = {"subj01": make_rows(60, 15, seed=1), "subj02": make_rows(50, 90, seed=2)}
    decoder = make_decoder({"subj01": 15, "subj02": 90}, latent=12)
    start_as_ridge(decoder, rows, seed=0)
    for subject, row in rows.items():
        truth = ridge(decoder, row).predict(row.responses)
        np.testing.assert_allclose(outputs(decoder, subject, row), truth, rtol=1e-3, atol=1e-4)


def test_with_a_narrower_latent_the_start_is_ridge_projected_on_the_leading_directions(
    make_decoder: Make, make_rows: Any
) -> None:
    rows = {"subj01": make_rows(60, 15, seed=1), "subj02": make_rows(50, 30, seed=2)}
    decoder = make_decoder({"subj01": 15, "subj02": 30}, latent=3)
    start_as_ridge(decoder, rows, seed=0)
    fits = {subject: ridge(decoder, row) for subject, row in rows.items()}
    weights = np.concatenate([np.full(size, size**-0.5) for size in SIZES.values()])
    held_out = np.concatenate([fit.held_out for fit in fits.values()]) * weights
    centre = held_out.mean(0)
    _, _, directions = np.linalg.svd(held_out - centre, full_matrices=False)
    project = directions[:3].T @ directions[:3]
    for subject, row in rows.items():
        weighted = fits[subject].predict(row.responses) * weights
        truth = ((weighted - centre) @ project + centre) / weights
        np.testing.assert_allclose(outputs(decoder, subject, row), truth, rtol=1e-3, atol=1e-4)


def test_latents_of_held_out_pictures_have_unit_variance_in_the_used_directions(
    make_decoder: Make, make_rows: Any
) -> None:
    rows = {"subj01": make_rows(400, 15, seed=1)}
    decoder = make_decoder({"subj01": 15}, latent=3)
    start_as_ridge(decoder, rows, seed=0)
    fresh = make_rows(400, 15, seed=1).responses
    with torch.no_grad():
        latent = decoder({"subj01": torch.from_numpy(fresh)})[0].numpy()
    np.testing.assert_allclose(latent.std(0), 1, atol=0.15)


def test_the_retrieval_direction_starts_as_the_same_ridge(make_decoder: Make, make_rows: Any) -> None:
    rows = {"subj01": make_rows(60, 15)}
    decoder = make_decoder({"subj01": 15})
    start_as_ridge(decoder, rows, seed=0)
    _, features, directions, *_ = decoder({"subj01": torch.from_numpy(rows["subj01"].responses)})
    torch.testing.assert_close(features["words"], directions["words"])


def test_too_many_features_for_a_ridge_start_are_refused(
    make_decoder: Make, make_rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(closed_form, "MOST_FEATURES", 9)
    with pytest.raises(InputError, match=r"10 features: at most 9\. Use `start: random`"):
        start_as_ridge(make_decoder({"subj01": 15}), {"subj01": make_rows(60, 15)}, seed=0)


def test_ridge_maps_are_ridge_a_space_at_a_time(spaces: dict[str, TargetSpace], make_rows: Any) -> None:
    rows = make_rows(60, 15)
    decoder = RidgeDecoder({"subj01": 15}, spaces)
    decoder.fit("subj01", rows, seed=0)
    predictions = decoder.predict({"subj01": torch.from_numpy(rows.responses)})
    for name, space in spaces.items():
        targets = ((rows.features[name] - space.mean) / space.scale).reshape(60, -1)
        truth = fit_ridge(rows.responses, targets, groups=rows.groups).predict(rows.responses)
        restored = truth.reshape(60, *space.shape) * space.scale + space.mean
        np.testing.assert_allclose(predictions.features[name], restored, rtol=1e-3, atol=1e-4)


def pretrained(make_decoder: Make, world: Any) -> MultiSubjectDecoder:
    """A decoder of two subjects with 400 pictures each."""
    rows = {
        "subj01": world.seen_by(1, 30, slice(0, 400)),
        "subj02": world.seen_by(2, 45, slice(400, 800)),
    }
    decoder = make_decoder({"subj01": 30, "subj02": 45}, latent=3)
    start_as_ridge(decoder, rows, seed=0)
    fit_alignment(decoder, rows, seed=0)
    return decoder


def test_a_new_subject_finds_the_latent_that_others_share(make_decoder: Make, world: Any) -> None:
    decoder = pretrained(make_decoder, world)
    decoder.with_subjects({"subj03": 40})
    fit_head(decoder, "subj03", world.seen_by(3, 40, slice(800, 1000)), seed=0)
    test = slice(1000, 1200)
    with torch.no_grad():
        latent, *_ = decoder(
            {"subj03": torch.from_numpy(world.seen_by(3, 40, slice(0, 1200)).responses[test])}
        )
    design = np.column_stack([latent.numpy(), np.ones(200)])
    recovered = design @ np.linalg.lstsq(design, world.latent[test], rcond=None)[0]
    assert correlation(recovered, world.latent[test]) > 0.9


def test_a_new_subject_with_few_trials_is_ahead_of_its_own_ridge(make_decoder: Make, world: Any) -> None:
    decoder = pretrained(make_decoder, world)
    decoder.with_subjects({"subj03": 40})
    measured = world.seen_by(3, 40, slice(0, 1200))
    few, test = slice(800, 830), slice(860, 1200)
    rows = PictureRows(
        measured.responses[few],
        {name: value[few] for name, value in measured.features.items()},
        measured.nsd_ids[few],
        measured.groups[few],
    )
    fit_head(decoder, "subj03", rows, seed=0)
    shared = outputs(decoder, "subj03", PictureRows(measured.responses[test], {}, few, few))  # type: ignore[arg-type]
    alone = ridge(decoder, rows).predict(measured.responses[test])
    truth = np.concatenate([world.expected[name][test].reshape(340, -1) for name in SIZES], axis=1)
    assert correlation(shared, truth) > correlation(alone, truth) + 0.1


def test_a_decoder_without_alignment_cannot_take_a_new_subject(make_decoder: Make, make_rows: Any) -> None:
    decoder = make_decoder({"subj01": 15})
    with pytest.raises(InputError, match="no alignment"):
        fit_head(decoder, "subj01", make_rows(30, 15), seed=0)
