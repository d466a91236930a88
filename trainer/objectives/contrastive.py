"""Losses that tell the pictures of a global batch apart, with hard, mixed and soft labels.

Legend for shapes: B rows of the global batch (gathered over ranks, see `composite.py`), F features. Similarity is the
cosine; the temperature divides it. Rows that show one picture (repeats of it, or a picture that several subjects saw)
are not each other's negatives, where the published decoders count them as errors.
"""

import torch
from torch import Tensor
from torch.nn import functional


def contrastive_loss(
    predicted_BF: Tensor, target_BF: Tensor, picture_B: Tensor, *, temperature: float
) -> Tensor:
    """Symmetric InfoNCE over cosine similarities (Radford et al. 2021, CLIP, section 2.3)."""
    similarity = _cosines(predicted_BF, target_BF) / temperature
    same = picture_B[:, None] == picture_B[None, :]
    same.fill_diagonal_(False)
    similarity = similarity.masked_fill(same, float("-inf"))
    own = torch.arange(len(similarity), device=similarity.device)
    return (functional.cross_entropy(similarity, own) + functional.cross_entropy(similarity.T, own)) / 2


def bimixco_loss(
    predicted_BF: Tensor,
    target_BF: Tensor,
    picture_B: Tensor,
    partner_B: Tensor,
    share_B: Tensor,
    *,
    temperature: float,
) -> Tensor:
    """BiMixCo: InfoNCE in both directions between mixed responses and the pictures that they were mixed of.

    Row i was predicted from `share[i]` of its own responses and the rest of those of row `partner[i]`, a position in
    the same global batch; `partner[i] == i` says that it is not mixed, whatever its share. MixCo is Kim et al. 2020
    (arXiv 2010.06300); the second direction is MindEye's (Scotti et al. 2023, NeurIPS, arXiv 2305.18274). Published
    code reads positions within one subject as positions in the batch, so that most labels of a batch of several
    subjects point at a stranger's row, and it overwrites the label of a row that is its own partner; here every row's
    labels sum to 1.
    """
    similarity = _cosines(predicted_BF, target_BF) / temperature
    own = torch.arange(len(similarity), device=similarity.device)
    either = (picture_B[:, None] == picture_B[None, :]) | (
        picture_B[partner_B][:, None] == picture_B[None, :]
    )
    either[own, own] = False
    either[own, partner_B] = False
    similarity = similarity.masked_fill(either, float("-inf"))

    def labelled(log_probability: Tensor) -> Tensor:
        return share_B * log_probability[own, own] + (1 - share_B) * log_probability[own, partner_B]

    by_row, by_column = similarity.log_softmax(1), similarity.log_softmax(0)
    return -(labelled(by_row) + labelled(by_column)).mean() / 2


def softclip_loss(
    predicted_BF: Tensor, target_BF: Tensor, *, temperature: float, teacher_BF: Tensor | None = None
) -> Tensor:
    """SoftCLIP: cross-entropy in both directions, labelled by how alike the pictures themselves are.

    After Gao et al. 2023 (arXiv 2303.17561), as MindEye has it (Scotti et al. 2023, arXiv 2305.18274): the label of
    row i is softmax over j of cos(target i, target j) / temperature. Rows of one picture share a label equally.
    `teacher` are the features that label the rows where they are not the targets: mixed as the responses were, or of
    an augmented picture.
    """
    teacher = target_BF if teacher_BF is None else teacher_BF
    label = _cosines(teacher, target_BF) / temperature
    similarity = _cosines(predicted_BF, target_BF) / temperature
    by_row = (label.softmax(1) * similarity.log_softmax(1)).sum(1).mean()
    by_column = (label.softmax(0) * similarity.log_softmax(0)).sum(0).mean()
    return -(by_row + by_column) / 2


def soft_contrastive_loss(
    predicted: Tensor, target: Tensor, *, temperature: float, teacher: Tensor | None = None
) -> Tensor:
    """SoftCLIP between all positions of all maps: rows are (B, ..., C) with C channels last.

    MindEye2's low-level branch has it between 49 positions of ConvNeXt features (Scotti et al. 2024, ICML, arXiv
    2403.11207, section 2.2). There the targets compared with are of an augmented picture; features here are cached
    once, so both are of one picture unless `teacher` says otherwise. Published code takes features as they come, these
    are centred.
    """

    def positions(maps: Tensor | None) -> Tensor | None:
        return None if maps is None else maps.reshape(-1, maps.shape[-1])

    rows, columns = positions(predicted), positions(target)
    assert rows is not None and columns is not None
    return softclip_loss(rows, columns, temperature=temperature, teacher_BF=positions(teacher))


def _cosines(one_BF: Tensor, other_BF: Tensor) -> Tensor:
    return functional.normalize(one_BF, dim=1) @ functional.normalize(other_BF, dim=1).T
