"""Mixed and soft labels against loops over pairs; what published decoders get wrong, and what must hold instead."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fmri2img.trainer.objectives import (
    Mixing,
    bimixco_loss,
    contrastive_loss,
    cosine_loss,
    l1_loss,
    regression_loss,
    soft_contrastive_loss,
    softclip_loss,
)

Similar = Callable[[int, int], float]


def rows(count: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(count, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def cosine(one: Tensor, other: Tensor) -> float:
    dot = sum(a * b for a, b in zip(one.tolist(), other.tolist(), strict=True))
    return dot / math.hypot(*one.tolist()) / math.hypot(*other.tolist())


def log_share(scores: dict[int, float], which: int) -> float:
    return scores[which] - math.log(sum(math.exp(score) for score in scores.values()))


def bimixco_by_hand(
    predicted: Tensor,
    target: Tensor,
    picture: list[int],
    partner: list[int],
    share: list[float],
    temperature: float,
) -> float:
    """A pair at a time: who may be told from whom, and how much of a label each row has."""
    n = len(picture)

    def rivals(i: int, j: int) -> bool:
        shown = {picture[i], picture[partner[i]]}
        return j in (i, partner[i]) or picture[j] not in shown

    total = 0.0
    for i in range(n):
        label = {i: 0.0, partner[i]: 0.0}
        label[i] += share[i]
        label[partner[i]] += 1 - share[i]
        assert sum(label.values()) == pytest.approx(1)
        for j, weight in label.items():
            by_row = {m: cosine(predicted[i], target[m]) / temperature for m in range(n) if rivals(i, m)}
            by_column = {m: cosine(predicted[m], target[j]) / temperature for m in range(n) if rivals(m, j)}
            total -= weight * (log_share(by_row, j) + log_share(by_column, i)) / 2
    return total / n


@pytest.mark.parametrize(
    ("picture", "partner"),
    [
        ([1, 2, 3, 4, 5, 6], [1, 2, 0, 4, 5, 3]),  # two subjects of three rows
        ([1, 2, 3, 1, 2, 7], [1, 2, 0, 4, 5, 3]),  # who saw two of the same pictures
        ([1, 2, 3, 4, 5, 6], [0, 2, 1, 3, 4, 5]),  # most are not mixed
        ([1, 1, 1, 2, 2, 3], [1, 2, 0, 4, 3, 5]),  # mixed with another repeat of one's own picture
    ],
)
def test_bimixco_is_the_loop_over_pairs(picture: list[int], partner: list[int]) -> None:
    predicted, target = rows(6, 4), rows(6, 4, 1)
    share = [0.9, 0.5, 0.2, 0.7, 0.05, 1.0]
    found = bimixco_loss(
        predicted,
        target,
        torch.tensor(picture),
        torch.tensor(partner),
        torch.tensor(share, dtype=torch.float64),
        temperature=0.3,
    )
    assert float(found) == pytest.approx(
        bimixco_by_hand(predicted, target, picture, partner, share, 0.3), rel=1e-12
    )


def test_the_gradient_of_bimixco_is_the_numerical_one_with_masked_pairs() -> None:
    target, picture, partner = rows(5, 3, 1), torch.tensor([1, 2, 1, 3, 2]), torch.tensor([1, 0, 3, 2, 4])
    share = torch.tensor([0.9, 0.5, 0.2, 0.7, 1.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda predicted: bimixco_loss(predicted, target, picture, partner, share, temperature=0.5),
        rows(5, 3).requires_grad_(),
    )


def test_labels_of_mixed_rows_are_of_their_own_subjects_partner() -> None:
    # Published code numbers partners within a subject and reads them in the whole batch.
    target = torch.eye(6, dtype=torch.float64)  # every picture a direction of its own
    partner, share = torch.tensor([1, 2, 0, 4, 5, 3]), torch.full((6,), 0.5, dtype=torch.float64)
    mixed = Mixing(partner, share).mix(target)
    picture = torch.arange(6)

    def loss(predicted: Tensor) -> float:
        return float(bimixco_loss(predicted, target, picture, partner, share, temperature=0.05))

    right = loss(mixed)
    assert right == pytest.approx(math.log(2), abs=1e-4)  # half a label each, and nothing lost to others
    stranger = mixed.clone()
    stranger[3:] = (target[3:] + target[partner[3:] - 3]) / 2
    assert loss(stranger) > right + 1


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_row_that_is_its_own_partner_keeps_its_whole_label(share: float) -> None:
    # Published code overwrites the label of such a row, down to nothing for one that is not mixed.
    predicted, target, picture = rows(5, 4), rows(5, 4, 1), torch.arange(5)
    own = torch.arange(5)
    mixed = bimixco_loss(
        predicted, target, picture, own, torch.full((5,), share, dtype=torch.float64), temperature=0.2
    )
    plain = contrastive_loss(predicted, target, picture, temperature=0.2)
    assert float(mixed) == pytest.approx(float(plain), rel=1e-12)


def softclip_by_hand(predicted: Tensor, target: Tensor, teacher: Tensor, temperature: float) -> float:
    n, total = len(target), 0.0
    for i in range(n):
        for wanted, said in (
            (
                {j: cosine(teacher[i], target[j]) / temperature for j in range(n)},
                {j: cosine(predicted[i], target[j]) / temperature for j in range(n)},
            ),
            (
                {j: cosine(teacher[j], target[i]) / temperature for j in range(n)},
                {j: cosine(predicted[j], target[i]) / temperature for j in range(n)},
            ),
        ):
            total -= sum(math.exp(log_share(wanted, j)) * log_share(said, j) for j in range(n)) / 2
    return total / n


@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_softclip_is_the_loop_over_pairs(temperature: float) -> None:
    predicted, target, teacher = rows(5, 4), rows(5, 4, 1), rows(5, 4, 2)
    own = float(softclip_loss(predicted, target, temperature=temperature))
    assert own == pytest.approx(softclip_by_hand(predicted, target, target, temperature), rel=1e-12)
    other = float(softclip_loss(predicted, target, temperature=temperature, teacher_BF=teacher))
    assert other == pytest.approx(softclip_by_hand(predicted, target, teacher, temperature), rel=1e-12)


def test_rows_of_one_picture_share_a_soft_label() -> None:
    # So a prediction that is right for one is right for the other, whichever of the two it is compared with.
    target = rows(4, 6)
    target[3] = target[0]
    predicted = target.clone()
    swapped = predicted[[3, 1, 2, 0]]
    one, other = (float(softclip_loss(p, target, temperature=0.01)) for p in (predicted, swapped))
    assert one == pytest.approx(other, rel=1e-12)
    assert one == pytest.approx(math.log(2) / 2, abs=1e-6)  # two of four rows have two equal answers


def test_softclip_at_the_published_temperature_is_finite_in_float32() -> None:
    predicted, target = rows(8, 16).float().requires_grad_(), rows(8, 16, 1).float()
    loss = softclip_loss(predicted, target, temperature=0.004)
    loss.backward()
    assert torch.isfinite(loss) and predicted.grad is not None and bool(torch.isfinite(predicted.grad).all())


def test_soft_contrast_of_maps_is_softclip_between_their_positions() -> None:
    predicted, target, teacher = (rows(12, 5, seed).reshape(2, 2, 3, 5) for seed in range(3))
    one, other, third = (maps.reshape(12, 5) for maps in (predicted, target, teacher))
    found = soft_contrastive_loss(predicted, target, temperature=0.2, teacher=teacher)
    assert float(found) == pytest.approx(softclip_by_hand(one, other, third, 0.2), rel=1e-12)
    alone = soft_contrastive_loss(predicted, target, temperature=0.2)
    assert float(alone) == pytest.approx(softclip_by_hand(one, other, other, 0.2), rel=1e-12)


def test_regressions_are_what_they_are_called() -> None:
    predicted, target = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[4.0, 3.0], [0.0, 2.0]])
    assert float(regression_loss(predicted, target)) == pytest.approx((1 + 1 + 1 + 4) / 4)
    assert float(l1_loss(predicted, target)) == pytest.approx((1 + 1 + 1 + 2) / 4)
    assert float(cosine_loss(predicted, target)) == pytest.approx((1 - 24 / 25 + 1 - 0) / 2)
