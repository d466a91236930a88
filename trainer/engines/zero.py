"""Many processes, ZeRO 0 to 3, by raw `deepspeed.initialize` in the process group that is there already."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fmri2img.errors import Fmri2imgError, InputError
from fmri2img.models.decoder import MultiSubjectDecoder, Outputs
from fmri2img.models.prior import Noised
from fmri2img.trainer.collectives import rank, world_size
from fmri2img.trainer.config import TrainingConfig
from fmri2img.trainer.engines.ema import Average, Averaging
from fmri2img.trainer.engines.interface import (
    COUNT,
    MOMENTS,
    SCALER,
    load_plain_state,
    make_optimiser,
    plain_state,
    set_rate,
)

_KINDS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_SCALER_STATE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


class DeepSpeedEngine(Averaging):
    """Trains one decoder in all processes of the group."""

    def __init__(self, decoder: MultiSubjectDecoder, config: TrainingConfig) -> None:
        import deepspeed

        _check(config)
        self.stage, self.micro_batches = config.zero_stage, config.micro_batches
        self.kind = _KINDS[config.precision]
        reduced = self.kind != torch.float32
        exact = {name: value.detach().clone() for name, value in decoder.named_parameters() if reduced}
        self.engine, *_ = deepspeed.initialize(
            model=decoder,
            optimizer=make_optimiser(decoder, config),
            config=deepspeed_config(config, world_size()),
            dist_init_required=False,
        )
        self.decoder = self.engine.module
        self.device = torch.device(self.engine.device)
        self.updates = self.skipped = 0
        # DeepSpeed takes its float32 weights from the rounded ones, and a resumed run would not be the same.
        for name, parameter in self.decoder.named_parameters():
            if name in exact:
                self._set_whole(parameter, exact[name], None)
        self.average = Average(config.ema, self._masters) if config.ema else None

    def forward(self, responses: Mapping[str, Tensor], noised: Mapping[str, Noised] | None = None) -> Outputs:
        # As Accelerate does: the network computes in its own precision, the losses in float32.
        asked = {name: told._replace(noisy=told.noisy.to(self.kind)) for name, told in (noised or {}).items()}
        latent, *others = self.engine(
            {name: value.to(self.kind) for name, value in responses.items()},
            None if noised is None else asked,
        )
        return Outputs(
            latent.float(), *({name: value.float() for name, value in some.items()} for some in others)
        )

    def backward(self, loss: Tensor, *, last: bool = True) -> None:
        # DeepSpeed takes the mean over micro-batches, the loop hands it their sum.
        self.engine.backward(loss * self.micro_batches)
        if not last:
            self.engine.step()

    def step(self, rate: float) -> float:
        set_rate(self.engine.optimizer.param_groups, rate)
        norm = self._plain_norm() if self._plain else None
        try:
            self.engine.step()
        except Exception as error:
            if "loss scale already at minimum" not in str(error):
                raise
            raise Fmri2imgError(
                "float16 gradients overflow at the smallest loss scale: lower learning_rate, or use bfloat16"
            ) from error
        if self.kind == torch.float16 and self.engine.optimizer.overflow:
            self.skipped += 1
            return 0.0
        self.updates += 1
        if self.average is not None:
            self.average.update(self.updates)
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

    def _set_weight(self, parameter: nn.Parameter, value: Tensor) -> None:
        self._set_whole(parameter, value, None)

    def optimiser_tensors(self) -> dict[str, Tensor]:
        from deepspeed.utils import safe_get_full_optimizer_state

        if self._plain:
            return plain_state(self._inner, self.decoder)
        tensors = {COUNT: torch.tensor(float(self.updates))}
        if self.kind == torch.float16:
            scaler = self.engine.optimizer.loss_scaler
            tensors |= {
                f"{SCALER}{name}": torch.tensor(float(getattr(scaler, name))) for name in _SCALER_STATE
            }
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
        for name in _SCALER_STATE:
            if f"{SCALER}{name}" in tensors:
                value = float(tensors[f"{SCALER}{name}"])
                setattr(self.engine.optimizer.loss_scaler, name, value if name == "cur_scale" else int(value))
        if self._plain:
            load_plain_state(self._inner, self.decoder, tensors)
            return
        if not self.updates:
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

    def _masters(self) -> Sequence[Tensor]:
        """The float32 weights that this rank updates."""
        return list(self.decoder.parameters()) if self._plain else self._flat_parameters()

    def _flat_parameters(self) -> list[Tensor]:
        if self.stage == 3:  # its optimiser holds parameters only while it steps
            return list(self.engine.optimizer.fp32_partitioned_groups_flat)
        return [flat for group in self._inner.param_groups for flat in group["params"]]

    def _set_whole(self, parameter: nn.Parameter, value: Tensor, moment: str | None) -> None:
        """Give every rank its part of a parameter's moment, or of its float32 weights (None)."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        if self._plain:
            parameter.data.copy_(value)
            return
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


def deepspeed_config(config: TrainingConfig, world: int) -> dict[str, Any]:
    """What DeepSpeed is told. Its scheduler and its own checkpoints stay unused: ours depend on no world size."""
    rows = config.global_batch // world // config.micro_batches
    zero: dict[str, Any] = {"stage": config.zero_stage, "overlap_comm": torch.cuda.is_available()}
    if config.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if config.offload == "optimizer-and-parameters":
        zero["offload_param"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    settings: dict[str, Any] = {
        "train_batch_size": rows * config.micro_batches * world,
        "train_micro_batch_size_per_gpu": rows,
        "gradient_accumulation_steps": config.micro_batches,
        "gradient_clipping": config.clip,
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,  # our AdamW updates on the CPU too, by the same arithmetic
        "steps_per_print": 2**31,
    }
    if config.precision != "float32":
        settings["bf16" if config.precision == "bfloat16" else "fp16"] = {"enabled": True}
    return settings


def _check(config: TrainingConfig) -> None:
    """Refuse what DeepSpeed would do wrong or cannot do here."""
    from deepspeed.accelerator import get_accelerator

    if config.precision != "float32" and config.zero_stage == 0:
        raise InputError(
            f"zero_stage 0 cannot train in {config.precision}, since DeepSpeed gives no float32 weights there to go on "
            "from: use zero_stage 1, 2 or 3"
        )
    if config.precision == "float16" and not get_accelerator().is_fp16_supported():
        raise InputError("precision float16 is not supported by this device: use bfloat16, or float32")
    needed = {"none": 0, "optimizer": 1, "optimizer-and-parameters": 3}[config.offload]
    if config.zero_stage < needed:
        raise InputError(
            f"offload {config.offload} needs zero_stage {needed} or more, not {config.zero_stage}: raise it, or use "
            "offload none"
        )
