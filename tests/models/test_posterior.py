"""The new head by Bayes' rule, against the textbook formula with dense matrices."""

import numpy as np
import torch

from fmri2img.models.closed_form import PictureRows, _posterior
from fmri2img.models.parts import Alignment
from fmri2img.models.ridge import fit_ridge

LATENT, VOXELS, TRIALS = 5, 40, 60


def world(seed: int) -> tuple[PictureRows, np.ndarray, Alignment]:
    """Trials of a linear brain, the latents expected of their pictures, and what pretraining knew of both."""
    random = np.random.default_rng(seed)
    mixing = random.normal(size=(LATENT, LATENT))
    latents = random.normal(size=(TRIALS, LATENT)) @ mixing.T + 2.0
    readout = random.normal(size=(LATENT, VOXELS))
    responses = latents @ readout + 3 * random.normal(size=(TRIALS, VOXELS)) + 1.0
    alignment = Alignment(3, LATENT)
    alignment.mean.fill_(2.0)
    alignment.covariance.copy_(torch.from_numpy(mixing @ mixing.T))
    alignment.tuning.copy_(torch.eye(LATENT))
    ids = np.arange(TRIALS)
    return PictureRows(responses.astype(np.float32), {}, ids, ids), latents, alignment


def test_the_factored_form_is_the_posterior_mean_with_the_dense_noise_covariance() -> None:
    rows, latents, alignment = world(0)
    weight, bias = _posterior(rows, latents, alignment, seed=0)
    covariance = alignment.covariance.double().numpy()
    values, vectors = np.linalg.eigh(covariance)
    whiten, colour = vectors / np.sqrt(values), vectors * np.sqrt(values)
    moment = colour.T @ colour
    shape = np.linalg.cholesky(0.5 * moment + 0.5 * np.trace(moment) / LATENT * np.eye(LATENT))
    encoding = fit_ridge((latents - 2.0) @ whiten @ shape, rows.responses, groups=rows.groups, seed=0)
    residual = rows.responses - encoding.held_out.astype(np.float64)
    noise = np.cov(residual.T, bias=True)
    noise = 0.5 * noise + np.diag(0.5 * np.diag(noise) + 1e-3 * np.diag(noise).mean())
    readout = (colour.T @ np.linalg.inv(colour.T) @ shape @ encoding.weight).T
    gain = readout.T @ np.linalg.inv(readout @ readout.T + noise)
    np.testing.assert_allclose(weight, (colour @ gain).T, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(bias, 2.0 - encoding.bias @ weight, rtol=1e-3, atol=1e-4)


def test_responses_without_signal_say_less_than_half_of_what_signal_says() -> None:
    rows, latents, alignment = world(1)
    random = np.random.default_rng(2)
    silent = PictureRows(
        random.normal(size=rows.responses.shape).astype(np.float32), {}, rows.nsd_ids, rows.groups
    )
    variances = []
    for part, seen in ((silent, random.normal(size=rows.responses.shape)), (rows, rows.responses)):
        weight, bias = _posterior(part, latents, alignment, seed=0)
        variances.append(np.trace(np.cov((seen @ weight + bias).T)))
    assert variances[0] < variances[1] / 2


def test_fewer_trials_pull_the_answer_towards_the_prior() -> None:
    rows, latents, alignment = world(3)
    few = PictureRows(rows.responses[:8], {}, rows.nsd_ids[:8], rows.groups[:8])
    spreads = []
    for part, known in ((few, latents[:8]), (rows, latents)):
        weight, bias = _posterior(part, known, alignment, seed=0)
        spreads.append(np.trace(np.cov((rows.responses @ weight + bias).T)))
    assert spreads[0] < spreads[1]
