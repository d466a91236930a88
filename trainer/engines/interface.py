"""What the loop asks of an engine, and what both engines share: the optimiser and its state as plain tensors."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fmri2img.models.decoder import MultiSubjectDecoder, Outputs, decay_groups
from fmri2img.models.prior import Noised
from fmri2img.trainer.config import TrainingConfig

MOMENTS = ("exp_avg", "exp_avg_sq")
COUNT = "count"
SCALER = "scaler."


class Engine(Protocol):
    """Forward, backward and update of one decoder."""

    decoder: MultiSubjectDecoder
    device: torch.device
    # Steps that float16's loss scaling left out because a gradient overflowed.
    skipped: int

    def forward(self, responses: Mapping[str, Tensor], noised: Mapping[str, Noised] | None = None) -> Outputs:
        """The decoder's outputs in float32; `noised` as the decoder's own `forward` has it."""
        ...

    def backward(self, loss: Tensor, *, last: bool = True) -> None:
        """Add the gradients of `loss` to those of the step; `last` says that the step has no more micro-batches."""
        ...

    def step(self, rate: float) -> float:
        """Clip, update, clear gradients. Returns the global gradient norm before clipping, 0 for a skipped step."""
        ...

    def model_tensors(self) -> dict[str, Tensor]:
        """The whole model in float32 on the CPU. Collective."""
        ...

    def ema_tensors(self) -> dict[str, Tensor]:
        """The whole model with averaged weights, or nothing where none are kept. Collective."""
        ...

    def load_ema(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from averaged weights that `ema_tensors` gave. Collective."""
        ...

    def optimiser_tensors(self) -> dict[str, Tensor]:
        """Moments of every parameter, whole, the number of updates, the loss scale. Collective."""
        ...

    def load_optimiser(self, tensors: Mapping[str, Tensor]) -> None: ...


def make_optimiser(decoder: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW over `decay_groups`, at rate 0: each step sets its own, so a forgotten rate is seen as no update."""
    groups: list[Any] = decay_groups(decoder, config.weight_decay, rates=config.rates)
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.999), eps=1e-8)


def set_rate(groups: list[dict[str, Any]], rate: float) -> None:
    """Give every group its rate for this step: its share of the schedule's."""
    for group in groups:
        group["lr"] = rate * group.get("share", 1.0)


def plain_state(optimiser: torch.optim.Optimizer, decoder: nn.Module) -> dict[str, Tensor]:
    """Moments and count of an optimiser that holds whole parameters."""
    tensors: dict[str, Tensor] = {COUNT: torch.tensor(0.0)}
    counts: dict[str, Tensor] = {}
    for name, parameter in decoder.named_parameters():
        state = optimiser.state.get(parameter)
        if state:
            counts[name] = torch.as_tensor(state["step"]).detach().float().cpu().clone()
            tensors[COUNT] = torch.maximum(tensors[COUNT], counts[name])
            for moment in MOMENTS:
                tensors[f"{moment}.{name}"] = state[moment].detach().float().cpu().clone().reshape(-1)
    # Parameters that were fixed for some steps have had fewer updates.
    fewer = {f"{COUNT}.{name}": n for name, n in counts.items() if n != tensors[COUNT]}
    return tensors | fewer


def load_plain_state(
    optimiser: torch.optim.Optimizer, decoder: nn.Module, tensors: Mapping[str, Tensor]
) -> None:
    """The inverse of `plain_state`."""
    for name, parameter in decoder.named_parameters():
        if f"exp_avg.{name}" in tensors:
            state = optimiser.state[parameter]
            state["step"] = tensors.get(f"{COUNT}.{name}", tensors[COUNT]).clone()
            for moment in MOMENTS:
                value = tensors[f"{moment}.{name}"].reshape(parameter.shape)
                state[moment] = value.to(parameter.device, parameter.dtype).clone()
