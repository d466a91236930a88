"""Closed-form starts: a decoder that begins as ridge, and a new subject's head fitted to the shared latent."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from fmri2img.errors import InputError
from fmri2img.models.decoder import MultiSubjectDecoder
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
    return fits


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
    fit = fit_ridge(
        np.concatenate(targets), np.concatenate(latents), groups=np.concatenate(groups), seed=seed
    )
    decoder.alignment.weight.copy_(torch.from_numpy(fit.weight))
    decoder.alignment.bias.copy_(torch.from_numpy(fit.bias))


@torch.no_grad()
def fit_head(decoder: MultiSubjectDecoder, subject: str, rows: PictureRows, *, seed: int) -> RidgeFit:
    """Fit a new subject's head so that its latents are those that the shared space expects for the pictures seen.

    Ridge from voxels to `decoder.alignment(features)`; the penalty is chosen by cross-validation over pictures.
    """
    if not decoder.alignment.fitted:
        raise InputError(
            "this checkpoint has no alignment of features to the shared latent: pretrain it again with this version, "
            "or start the head at random with `head_start: random`"
        )
    wanted = decoder.alignment(torch.from_numpy(_targets(decoder, rows))).numpy()
    fit = fit_ridge(rows.responses, wanted, groups=rows.groups, seed=seed)
    head = decoder.heads[subject]
    assert isinstance(head, nn.Linear)
    head.weight.copy_(torch.from_numpy(fit.weight.T.copy()))
    head.bias.copy_(torch.from_numpy(fit.bias))
    return fit
