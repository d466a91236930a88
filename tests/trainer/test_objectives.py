"""Losses against loops written out by hand, and a decoder in which every parameter learns."""

import math
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fmri2img.models.decoder import Outputs
from fmri2img.trainer.objectives import (
    Losses,
    Mixing,
    Place,
    contrastive_loss,
    decoder_loss,
    draw_mixing,
    regression_loss,
)
from fmri2img.trainer.objectives.settings import BiMixCo


def by_hand(predicted: Tensor, target: Tensor, pictures: list[int], temperature: float) -> float:
    """Symmetric InfoNCE, a pair at a time; rows of the same picture are not each other's negatives."""

    def similar(i: int, j: int) -> float:
        one, other = predicted[i].tolist(), target[j].tolist()
        dot = sum(a * b for a, b in zip(one, other, strict=True))
        return dot / math.hypot(*one) / math.hypot(*other) / temperature

    n, total = len(pictures), 0.0
    for i in range(n):
        rivals = [j for j in range(n) if j == i or pictures[j] != pictures[i]]
        by_row = math.log(sum(math.exp(similar(i, j)) for j in rivals)) - similar(i, i)
        by_column = math.log(sum(math.exp(similar(j, i)) for j in rivals)) - similar(i, i)
        total += (by_row + by_column) / 2
    return total / n


@pytest.mark.parametrize("pictures", [[1, 2, 3, 4, 5], [1, 2, 1, 2, 1], [7, 7, 7, 7, 8]])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_the_contrastive_loss_is_the_loop_over_pairs(pictures: list[int], temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    predicted, target = torch.randn(2, 5, 6, dtype=torch.float64, generator=generator)
    found = contrastive_loss(predicted, target, torch.tensor(pictures), temperature=temperature)
    assert float(found) == pytest.approx(by_hand(predicted, target, pictures, temperature), rel=1e-12)


def test_a_picture_alone_with_its_repeats_has_nothing_to_be_told_from() -> None:
    rows = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    predicted = rows.clone().requires_grad_()
    loss = contrastive_loss(predicted, rows.flip(0), torch.tensor([5, 5, 5]), temperature=0.1)
    loss.backward()
    assert float(loss.detach()) == 0
    assert predicted.grad is not None and torch.equal(predicted.grad, torch.zeros(3, 4, dtype=torch.float64))


def test_the_contrastive_gradient_is_the_numerical_one_with_masked_pairs() -> None:
    generator = torch.Generator().manual_seed(1)
    predicted, target = torch.randn(2, 5, 3, dtype=torch.float64, generator=generator)
    pictures = torch.tensor([1, 2, 1, 3, 2])
    assert torch.autograd.gradcheck(
        lambda rows: contrastive_loss(rows, target, pictures, temperature=0.5), predicted.requires_grad_()
    )


def test_the_regression_loss_is_the_mean_of_squares() -> None:
    assert float(regression_loss(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 4.0]]))) == 2.5


def test_terms_are_weighted_as_the_recipe_says(processes: ModuleType) -> None:
    made = processes.decoder()
    responses, features, _ = processes.batch(0)
    with torch.no_grad():
        outputs = made(responses)
        loss = processes.losses(lambda _: outputs, made, 0)
    words = (features["words"] - 0.5) / 2
    assert set(loss.terms) == {
        "map/mse",
        "tone/contrastive",
        "words/contrastive",
        "words/mse",
    }
    assert float(loss.terms["words/mse"]) == pytest.approx(
        float((outputs[1]["words"] - words).square().mean()), rel=1e-5
    )
    values = {name: float(value) for name, value in loss.terms.items()}
    total = (
        values["map/mse"]
        + 0.7 * values["tone/contrastive"]
        + values["words/mse"]
        + 0.3 * values["words/contrastive"]
    )
    assert loss.total(values) == pytest.approx(total) == pytest.approx(float(loss.backward))


def test_every_parameter_has_a_gradient_after_one_backward_and_learns_within_two(
    processes: ModuleType,
) -> None:
    # As a decoder begins: the last layers of residual paths are zero, so what is before them learns one step later.
    torch.manual_seed(0)
    fresh = processes.fresh()
    optimiser = torch.optim.SGD(fresh.parameters(), lr=0.1)
    moved: set[str] = set()
    for step in range(3):
        optimiser.zero_grad()
        processes.losses(fresh, fresh, step).backward.backward()
        without = [name for name, p in fresh.named_parameters() if p.grad is None]
        assert without == []
        moved |= {
            n for n, p in fresh.named_parameters() if p.grad is not None and bool(p.grad.abs().sum() > 0)
        }
        optimiser.step()
    # A space without regression has no use for the layer that predicts its features.
    idle = {f"branches.tone.contract.{kind}" for kind in ("weight", "bias")}
    assert {name for name, _ in fresh.named_parameters()} - moved == idle


def test_regression_and_contrast_train_as_they_did_before_losses_had_kinds(processes: ModuleType) -> None:
    """To the bit: the sum as it was written out when a space had one weight for each."""
    made = processes.decoder()
    loss = processes.losses(made, made, 0)
    responses, features, pictures = processes.batch(0)
    _, predicted, directions, *_ = made(responses)
    total: Tensor | None = None
    for name, regression, contrast in (("map", 1.0, 0.0), ("tone", 0.0, 0.7), ("words", 1.0, 0.3)):
        target = (features[name].flatten(1) - 0.5) / 2.0
        if regression:
            term = functional.mse_loss(predicted[name], target) * regression
            total = term if total is None else total + term
        if contrast:
            similarity = (
                functional.normalize(directions[name], dim=1) @ functional.normalize(target, dim=1).T / 0.1
            )
            same = (pictures[:, None] == pictures[None, :]) & ~torch.eye(len(pictures), dtype=torch.bool)
            similarity = similarity.masked_fill(same, float("-inf"))
            own = torch.arange(len(pictures))
            by_row, by_column = (functional.cross_entropy(s, own) for s in (similarity, similarity.T))
            total = total + (by_row + by_column) / 2 * contrast * 1 if total is not None else None
    assert total is not None and torch.equal(loss.backward, total + 0.0 * predicted["tone"].sum())
    made.zero_grad()
    loss.backward.backward()
    found = {name: p.grad.clone() for name, p in made.named_parameters() if p.grad is not None}
    made.zero_grad()
    (total + 0.0 * predicted["tone"].sum()).backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None and torch.equal(found[name], parameter.grad), name


def test_targets_are_mixed_as_the_responses_were(processes: ModuleType) -> None:
    # Published code mixes responses but not the targets of its regressions and low-level losses.
    made = processes.decoder()
    _, features, pictures = processes.batch(0)
    mixing = draw_mixing(
        BiMixCo(mixed=1.0), dict.fromkeys(processes.VOXELS, processes.ROWS), range(4), seed=0, step=0
    )
    mixed = {name: mixing.mix(made.branch(name).standardise(value)) for name, value in features.items()}
    kinds = Losses.model_validate({"mse": {}, "cosine": {}, "l1": {}, "soft_contrastive": {}, "softclip": {}})
    spaces = {"words": kinds}
    outputs = Outputs(torch.zeros(len(pictures), 1), mixed, mixed, {}, {}, {})

    def terms(with_mixing: Mixing | None) -> dict[str, float]:
        loss = decoder_loss(made, outputs, features, pictures, spaces, place=Place(0, 1), mixing=with_mixing)
        return {name: float(value) for name, value in loss.terms.items()}

    right, wrong = terms(mixing), terms(None)
    assert right["words/mse"] == right["words/l1"] == 0
    assert right["words/cosine"] == pytest.approx(0, abs=1e-6)
    assert all(wrong[name] > right[name] + 0.01 for name in right)
