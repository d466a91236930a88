"""Closed-form starts: a decoder that begins as ridge, and a new subject's head fitted to the shared latent."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import nn

from fmri2img.errors import InputError
from fmri2img.models.decoder import MultiSubjectDecoder
from fmri2img.models.parts import Alignment
from fmri2img.models.ridge import RidgeFit, fit_ridge


@dataclass(frozen=True)
class PictureRows:
    """One subject's pictures: responses, averaged over repeats or single, and what the pictures are.

    responses (n, V) float32; features {space: (n, *shape)} float32 in the spaces' units; nsd_ids (n,); groups (n,), the
    pictures or sessions that cross-validation keeps together.
    """

    responses: np.ndarray
    features: dict[str, np.ndarray]
    nsd_ids: np.ndarray
    groups: np.ndarray


HeadMethod = Literal["posterior", "ridge", "paired"]
MOST_FEATURES = (
    8192  # a basis of more features than this would need a (features x features) eigenproblem too large
)


def start_as_ridge(
    decoder: MultiSubjectDecoder, rows: Mapping[str, PictureRows], *, seed: int
) -> dict[str, RidgeFit]:
    """Set heads and linear paths so that the decoder's first prediction is each subject's ridge regression.

    Ridge from voxels to all standardised features, cross-validated, a subject at a time; the latent is the leading
    principal subspace of the held-out predictions of all subjects (reduced-rank regression), with unit variance.
    Returns the fits. The decoder equals them up to the rank of the latent.
    """
    spaces = list(decoder.branches)
    sizes = [decoder.branch(name).mean.numel() for name in spaces]
    if sum(sizes) > MOST_FEATURES:
        raise InputError(
            f"start ridge cannot take {sum(sizes)} features: at most {MOST_FEATURES}. Use `start: random` in the recipe"
        )
    weights = np.concatenate([np.full(size, 1 / np.sqrt(size)) for size in sizes]).astype(np.float32)
    fits = {
        name: fit_ridge(row.responses, _targets(decoder, row) * weights, groups=row.groups, seed=seed)
        for name, row in rows.items()
    }
    held_out = np.concatenate([fits[name].held_out for name in sorted(fits)])
    basis, spread, centre = _principal_basis(held_out, decoder.latent)
    with torch.no_grad():
        for name, fit in fits.items():
            head = decoder.heads[name]
            assert isinstance(head, nn.Linear)
            rank = basis.shape[1]
            head.weight.zero_()
            head.bias.zero_()
            head.weight[:rank] = torch.from_numpy((fit.weight @ basis / spread).T.copy())
            head.bias[:rank] = torch.from_numpy((fit.bias - centre) @ basis / spread)
        _set_linear_paths(decoder, basis * spread / weights[:, None], centre / weights, sizes)
    for name, row in rows.items():
        fit_rebuild(decoder, name, row, seed=seed)
    return fits


@torch.no_grad()
def fit_rebuild(decoder: MultiSubjectDecoder, subject: str, rows: PictureRows, *, seed: int) -> None:
    """Fit a subject's map from the latent back to its voxels, where there is one: ridge on its head's latents."""
    if subject not in decoder.rebuild:
        return
    head, back = decoder.heads[subject], decoder.rebuild[subject]
    assert isinstance(back, nn.Linear)
    latents = head(torch.from_numpy(rows.responses)).numpy()
    fit = fit_ridge(latents, rows.responses, groups=rows.groups, seed=seed)
    back.weight.copy_(torch.from_numpy(fit.weight.T.copy()))
    back.bias.copy_(torch.from_numpy(fit.bias))


def _targets(decoder: MultiSubjectDecoder, rows: PictureRows) -> np.ndarray:
    features = {name: torch.from_numpy(rows.features[name]) for name in decoder.branches}
    return decoder.standardise(features).numpy()


def _principal_basis(rows: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Leading directions (features, rank), their standard deviations (rank,) and the mean (features,)."""
    centre = rows.mean(0)
    covariance = np.cov(rows, rowvar=False).astype(np.float64).reshape(rows.shape[1], rows.shape[1])
    values, vectors = np.linalg.eigh(covariance)
    keep = np.argsort(values)[::-1][: min(rank, rows.shape[1])]
    keep = keep[values[keep] > values.max() * 1e-8]
    spread = np.sqrt(values[keep])
    return vectors[:, keep].astype(np.float32), spread.astype(np.float32), centre.astype(np.float32)


def _set_linear_paths(
    decoder: MultiSubjectDecoder, basis: np.ndarray, centre: np.ndarray, sizes: list[int]
) -> None:
    start = 0
    for name, size in zip(decoder.branches, sizes, strict=True):
        linear = decoder.branch(name).linear
        linear.weight.zero_()
        linear.weight[:, : basis.shape[1]] = torch.from_numpy(basis[start : start + size].copy())
        linear.bias.copy_(torch.from_numpy(centre[start : start + size].copy()))
        start += size


@torch.no_grad()
def fit_alignment(decoder: MultiSubjectDecoder, rows: Mapping[str, PictureRows], *, seed: int) -> None:
    """Estimate the latent expected for a picture from its features, over all subjects' training pictures.

    The ridge fit averages out what is noise in a subject's latent and what is one subject's alone.
    """
    latents, targets, groups = [], [], []
    for name, row in rows.items():
        head = decoder.heads[name]
        latents.append(head(torch.from_numpy(row.responses)).numpy())
        targets.append(_targets(decoder, row))
        groups.append(row.groups)
    known = np.concatenate(targets)
    fit = fit_ridge(known, np.concatenate(latents), groups=np.concatenate(groups), seed=seed)
    alignment = decoder.alignment
    alignment.weight.copy_(torch.from_numpy(fit.weight))
    alignment.bias.copy_(torch.from_numpy(fit.bias))
    expected = alignment(torch.from_numpy(known)).double()
    alignment.mean.copy_(expected.mean(0))
    alignment.covariance.copy_(expected.T.cov())
    whiten, _ = _whitening(alignment.covariance.numpy())
    moment, voxels = np.zeros((whiten.shape[1], whiten.shape[1])), 0
    start = 0
    for row in rows.values():
        part = expected[start : start + len(row.groups)].numpy()
        start += len(row.groups)
        encoding = fit_ridge(
            (part - alignment.mean.numpy()) @ whiten, row.responses, groups=row.groups, seed=seed
        )
        moment += encoding.weight.astype(np.float64) @ encoding.weight.T
        voxels += row.responses.shape[1]
    alignment.tuning.copy_(torch.from_numpy(whiten @ (moment / voxels) @ whiten.T))


def _whitening(covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(latent, kept) matrices: latents times the first have identity covariance; the second transposed undoes it."""
    values, vectors = np.linalg.eigh(covariance.astype(np.float64))
    keep = values > values.max() * 1e-6
    return vectors[:, keep] / np.sqrt(values[keep]), vectors[:, keep] * np.sqrt(values[keep])


@torch.no_grad()
def fit_head(
    decoder: MultiSubjectDecoder,
    subject: str,
    rows: PictureRows,
    *,
    seed: int,
    method: HeadMethod = "posterior",
    paired: tuple[np.ndarray, np.ndarray] | None = None,
) -> None:
    """Fit a new subject's head so that its latents are those that the shared space expects for the pictures seen.

    `ridge` regresses `decoder.alignment(features)` on the voxels. `posterior` regresses the voxels on it and inverts
    that encoding model by Bayes' rule, with the latents of pretraining's pictures as the prior (after Naselaris et al.
    2009, Neuron; here all Gaussian): what a few trials cannot tell comes from what pictures are like. Penalties are
    chosen by cross-validation. `paired` is `ridge` to the latents that others had at the same trials, and to
    the expected ones elsewhere: it needs `paired`, their means (rows, L) and how many each is the mean of (rows,).
    """
    alignment = decoder.alignment
    if not alignment.kept:
        raise InputError(
            f"head {method} is fitted to the expected latents of pictures, which this architecture does not keep: set "
            "finetuning.head=random, as published finetuning has it"
        )
    if not alignment.fitted:
        raise InputError(
            "this checkpoint has no alignment of features to the shared latent: pretrain it again with this version"
        )
    expected = alignment(torch.from_numpy(_targets(decoder, rows))).numpy()
    if method == "paired":
        if paired is None or not paired[1].any():
            raise InputError(
                f"head: paired needs trials that {subject} and a subject of pretraining saw at the same session and "
                f"place, and none of the {len(expected)} is: use head: posterior"
            )
        expected = np.where(paired[1][:, None] > 0, paired[0], expected)
    if method in ("ridge", "paired"):
        fit = fit_ridge(rows.responses, expected, groups=rows.groups, seed=seed)
        weight, bias = fit.weight, fit.bias
    else:
        weight, bias = _posterior(rows, expected, alignment, seed)
    head = decoder.heads[subject]
    assert isinstance(head, nn.Linear)
    head.weight.copy_(torch.from_numpy(weight.T.copy()))
    head.bias.copy_(torch.from_numpy(bias))
    fit_rebuild(decoder, subject, rows, seed=seed)


def _posterior(
    rows: PictureRows, expected: np.ndarray, alignment: Alignment, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Weight (voxels, latent) and bias (latent,) of the posterior mean of the latent given the responses.

    In coordinates w where the prior is standard normal, responses = w A + b + noise, and a voxel's weights A are a
    priori like those of the voxels of pretraining. The noise covariance is that of held-out residuals, halfway to its
    diagonal, in factored form, so that the cost grows with rows, not voxels.
    """
    mean, tuning = alignment.mean.double().numpy(), alignment.tuning.double().numpy()
    whiten, colour = _whitening(alignment.covariance.numpy())
    shape = np.linalg.cholesky(
        _halfway(colour.T @ tuning @ colour)
    )  # a voxel's weights are shape @ standard normal
    encoding = fit_ridge((expected - mean) @ whiten @ shape, rows.responses, groups=rows.groups, seed=seed)
    residual = (rows.responses - encoding.held_out).astype(np.float64)
    residual -= residual.mean(0)
    variance = residual.var(0)
    diagonal = 0.5 * variance + 1e-3 * variance.mean() + 1e-12
    factor = np.sqrt(0.5 / len(residual)) * residual.T  # (voxels, rows)
    readout = (shape @ encoding.weight).T.astype(np.float64)  # (voxels, kept)
    scaled = factor / diagonal[:, None]
    inner = np.linalg.solve(np.eye(len(residual)) + factor.T @ scaled, scaled.T @ readout)
    precise = readout / diagonal[:, None] - scaled @ inner  # noise covariance inverse times readout
    gain = np.linalg.solve(readout.T @ precise + np.eye(readout.shape[1]), precise.T)
    weight = (colour @ gain).T
    bias = mean - encoding.bias.astype(np.float64) @ weight
    return weight.astype(np.float32), bias.astype(np.float32)


def _halfway(moment: np.ndarray) -> np.ndarray:
    """A second moment halfway to the isotropic one of equal trace: few pictures or subjects tell it badly."""
    size = len(moment)
    return np.asarray(0.5 * moment + (0.5 * np.trace(moment) / size + 1e-12) * np.eye(size))
