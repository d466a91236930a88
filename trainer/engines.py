"""Two engines behind one small interface: DeepSpeed for many processes, Accelerate for one device.

Optimiser state leaves an engine as whole float32 tensors named after the parameters, and enters another engine the
same way, so a run can go on at another world size, ZeRO stage or engine.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fmri2img.errors import InputError
from fmri2img.models.decoder import MultiSubjectDecoder, decay_groups
from fmri2img.trainer.collectives import rank, world_size
from fmri2img.trainer.config import TrainingConfig

MOMENTS = ("exp_avg", "exp_avg_sq")
COUNT = "count"


class Engine(Protocol):
    """Forward, backward and update of one decoder."""

    decoder: MultiSubjectDecoder
    device: torch.device

    def forward(
        self, responses: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]: ...

    def backward(self, loss: Tensor) -> None: ...

    def step(self, rate: float) -> float:
        """Clip, update, clear gradients. Returns the global gradient norm before clipping."""
        ...

    def model_tensors(self) -> dict[str, Tensor]:
        """The whole model in float32 on the CPU. Collective."""
        ...

    def optimiser_tensors(self) -> dict[str, Tensor]:
        """Moments of every parameter, whole, and the number of updates. Collective."""
        ...

    def load_optimiser(self, tensors: Mapping[str, Tensor]) -> None: ...


def _optimiser(decoder: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    # Built with rate 0: each step sets its own, so an update at a forgotten rate would be seen as no update.
    groups: list[Any] = decay_groups(decoder, config.weight_decay)
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.999), eps=1e-8)


class AccelerateEngine:
    """One process, one device, mixed precision by Accelerate."""

    def __init__(self, decoder: MultiSubjectDecoder, config: TrainingConfig) -> None:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState

        if world_size() > 1:
            raise InputError(
                f"AccelerateEngine trains on one device, the process group has {world_size()}: use pretrain"
            )
        mixed = "bf16" if config.precision == "bfloat16" else "no"
        # Its precision is one for the process; a stage of another one may come after this in the same process.
        AcceleratorState._reset_state()
        self.accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision=mixed)
        self.decoder, self.optimiser = self.accelerator.prepare(decoder, _optimiser(decoder, config))
        self.clip = config.clip
        self.device = self.accelerator.device

    def forward(self, responses: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        outputs: tuple[Tensor, dict[str, Tensor], dict[str, Tensor]] = self.decoder(responses)
        return outputs

    def backward(self, loss: Tensor) -> None:
        self.accelerator.backward(loss)

    def step(self, rate: float) -> float:
        _set_rate(self.optimiser.param_groups, rate)
        limit = self.clip or float("inf")
        norm = float(self.accelerator.clip_grad_norm_(self.decoder.parameters(), limit))
        self.optimiser.step()
        self.optimiser.zero_grad()
        return norm

    def model_tensors(self) -> dict[str, Tensor]:
        return {
            name: value.detach().float().cpu().clone() for name, value in self.decoder.state_dict().items()
        }

    def optimiser_tensors(self) -> dict[str, Tensor]:
        return _plain_state(self.optimiser.optimizer, self.decoder)

    def load_optimiser(self, tensors: Mapping[str, Tensor]) -> None:
        _load_plain_state(self.optimiser.optimizer, self.decoder, tensors)


class DeepSpeedEngine:
    """Many processes, ZeRO 0 to 3, by raw `deepspeed.initialize` in the process group that is there already."""

    def __init__(self, decoder: MultiSubjectDecoder, config: TrainingConfig) -> None:
        import deepspeed

        if config.precision == "bfloat16" and config.zero_stage == 0:
            raise InputError(
                "zero_stage 0 cannot train in bfloat16, since DeepSpeed gives no float32 weights there to go on from: "
                "use zero_stage 1, 2 or 3"
            )
        self.stage = config.zero_stage
        rows = config.global_batch // world_size()
        settings: dict[str, Any] = {
            "train_batch_size": rows * world_size(),
            "train_micro_batch_size_per_gpu": rows,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": config.clip,
            "zero_optimization": {"stage": config.zero_stage, "overlap_comm": torch.cuda.is_available()},
            "bf16": {"enabled": config.precision == "bfloat16"},
            "steps_per_print": 2**31,
        }
        exact = {
            name: value.detach().clone()
            for name, value in decoder.named_parameters()
            if settings["bf16"]["enabled"]
        }
        self.engine, *_ = deepspeed.initialize(
            model=decoder, optimizer=_optimiser(decoder, config), config=settings, dist_init_required=False
        )
        self.decoder = self.engine.module
        self.device = torch.device(self.engine.device)
        self.updates = 0
        # DeepSpeed takes its float32 weights from the rounded ones, and a resumed run would not be the same.
        for name, parameter in self.decoder.named_parameters():
            if name in exact:
                self._set_whole(parameter, exact[name], None)

    def forward(self, responses: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        # As Accelerate does: the network computes in its own precision, the losses in float32.
        kind = torch.bfloat16 if self.engine.bfloat16_enabled() else torch.float32
        latent, features, directions = self.engine(
            {name: value.to(kind) for name, value in responses.items()}
        )
        return (
            latent.float(),
            {name: value.float() for name, value in features.items()},
            {name: value.float() for name, value in directions.items()},
        )

    def backward(self, loss: Tensor) -> None:
        self.engine.backward(loss)

    def step(self, rate: float) -> float:
        _set_rate(self.engine.optimizer.param_groups, rate)
        norm = self._plain_norm() if self._plain else None
        self.engine.step()
        self.updates += 1
        return float(self.engine.get_global_grad_norm()) if norm is None else norm

    @property
    def _plain(self) -> bool:
        # Stage 0 keeps whole parameters and the plain optimiser, and computes no norm of its own.
        return self.stage == 0

    def _plain_norm(self) -> float:
        gradients = [p.grad for p in self.decoder.parameters() if p.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients))

    def model_tensors(self) -> dict[str, Tensor]:
        from deepspeed.utils import safe_get_full_fp32_param

        tensors: dict[str, Tensor] = {}
        for name, parameter in self.decoder.named_parameters():
            whole = safe_get_full_fp32_param(parameter)
            tensors[name] = (parameter if whole is None else whole).detach().float().cpu().clone()
        for name, buffer in self.decoder.named_buffers():
            tensors[name] = buffer.detach().float().cpu().clone()
        return tensors

    def optimiser_tensors(self) -> dict[str, Tensor]:
        from deepspeed.utils import safe_get_full_optimizer_state

        if self._plain:
            return _plain_state(self._inner, self.decoder)
        tensors = {COUNT: torch.tensor(float(self.updates))}
        if not self.updates:  # moments are made at the first update
            return tensors
        self._link_moments()
        for name, parameter in self.decoder.named_parameters():
            for moment in MOMENTS:
                whole = safe_get_full_optimizer_state(parameter, moment)
                tensors[f"{moment}.{name}"] = whole.detach().float().cpu().clone().reshape(-1)
        return tensors

    def _link_moments(self) -> None:
        """Give every parameter its part of the flat moments.

        DeepSpeed 0.19 does this once, after the first group's first update, and leaves the other groups out.
        """
        if hasattr(self.engine.optimizer, "_lazy_init_hp_params_optimizer_state"):
            self.engine.optimizer._hp_optimizer_states_linked = False
            self.engine.optimizer._lazy_init_hp_params_optimizer_state()

    @property
    def _inner(self) -> torch.optim.Optimizer:
        inner: torch.optim.Optimizer = getattr(self.engine.optimizer, "optimizer", self.engine.optimizer)
        return inner

    def load_optimiser(self, tensors: Mapping[str, Tensor]) -> None:
        self.updates = int(tensors[COUNT])
        if self._plain:
            _load_plain_state(self._inner, self.decoder, tensors)
            return
        # The optimiser makes its moments at its first step; resuming needs them before it.
        for flat in self._flat_parameters():
            state = self._inner.state[flat]
            state["step"] = torch.tensor(float(self.updates))
            for moment in MOMENTS:
                state[moment] = torch.zeros_like(flat)
        self._link_moments()
        for name, parameter in self.decoder.named_parameters():
            for moment in MOMENTS:
                self._set_whole(parameter, tensors[f"{moment}.{name}"], moment)

    def _flat_parameters(self) -> list[Tensor]:
        if self.stage == 3:  # its optimiser holds parameters only while it steps
            return list(self.engine.optimizer.fp32_partitioned_groups_flat)
        return [flat for group in self._inner.param_groups for flat in group["params"]]

    def _set_whole(self, parameter: nn.Parameter, value: Tensor, moment: str | None) -> None:
        """Give every rank its part of a parameter's moment, or of its float32 weights (None)."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        if self.stage < 3 and moment is None:
            safe_set_full_fp32_param(parameter, value)
            return
        if self.stage < 3:
            safe_set_full_optimizer_state(parameter, value, moment)
            return
        # At ZeRO 3 DeepSpeed's own setter fails where the ranks' parts are unequal.
        zero = self.engine.optimizer
        part, _ = zero._get_fp32_opt_state_partition(
            parameter, release_swap_buffers=False, optim_state_key=moment
        )
        mine = value.flatten()[len(part) * rank() :][: len(part)]
        part.data.zero_()
        part.data[: len(mine)].copy_(mine)


def _set_rate(groups: list[dict[str, Any]], rate: float) -> None:
    for group in groups:
        group["lr"] = rate


def _plain_state(optimiser: torch.optim.Optimizer, decoder: nn.Module) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {COUNT: torch.tensor(0.0)}
    for name, parameter in decoder.named_parameters():
        state = optimiser.state.get(parameter)
        if state:
            tensors[COUNT] = torch.as_tensor(state["step"]).detach().float().cpu().clone()
            for moment in MOMENTS:
                tensors[f"{moment}.{name}"] = state[moment].detach().float().cpu().clone().reshape(-1)
    return tensors


def _load_plain_state(
    optimiser: torch.optim.Optimizer, decoder: nn.Module, tensors: Mapping[str, Tensor]
) -> None:
    for name, parameter in decoder.named_parameters():
        if f"exp_avg.{name}" in tensors:
            state = optimiser.state[parameter]
            state["step"] = tensors[COUNT].clone()
            for moment in MOMENTS:
                value = tensors[f"{moment}.{name}"].reshape(parameter.shape)
                state[moment] = value.to(parameter.device, parameter.dtype).clone()
