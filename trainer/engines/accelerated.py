"""One process, one device, mixed precision by Accelerate."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fmri2img.errors import InputError
from fmri2img.models.decoder import MultiSubjectDecoder, Outputs
from fmri2img.models.prior import Noised
from fmri2img.trainer.collectives import world_size
from fmri2img.trainer.config import TrainingConfig
from fmri2img.trainer.engines.ema import Average, Averaging
from fmri2img.trainer.engines.interface import SCALER, load_plain_state, make_optimiser, plain_state, set_rate

_MIXED = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}
_SCALER_STATE = ("scale", "_growth_tracker")


class AccelerateEngine(Averaging):
    """Trains one decoder alone on the device that Accelerate finds."""

    def __init__(self, decoder: MultiSubjectDecoder, config: TrainingConfig) -> None:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState

        if world_size() > 1:
            raise InputError(
                f"AccelerateEngine trains on one device, the process group has {world_size()}: use pretrain"
            )
        if config.precision == "float16" and not torch.cuda.is_available():
            raise InputError(
                "precision float16 needs a GPU, and there is none here: use bfloat16, or float32"
            )
        # Its precision is one for the process; a stage of another one may come after this in the same process.
        AcceleratorState._reset_state()
        self.accelerator = Accelerator(
            cpu=not torch.cuda.is_available(), mixed_precision=_MIXED[config.precision]
        )
        # Where torchrun started this process, Accelerate would wrap the decoder for others to join; there are none.
        self.decoder = self.accelerator.prepare_model(decoder, evaluation_mode=True)
        self.optimiser = self.accelerator.prepare_optimizer(make_optimiser(decoder, config))
        self.clip = config.clip
        self.device = self.accelerator.device
        self.updates = self.skipped = 0
        self.average = Average(config.ema, lambda: list(self.decoder.parameters())) if config.ema else None

    def forward(self, responses: Mapping[str, Tensor], noised: Mapping[str, Noised] | None = None) -> Outputs:
        outputs: Outputs = self.decoder(responses, noised)
        return outputs

    def backward(self, loss: Tensor, *, last: bool = True) -> None:
        self.accelerator.backward(loss)

    def step(self, rate: float) -> float:
        set_rate(self.optimiser.param_groups, rate)
        limit = self.clip or float("inf")
        norm = float(self.accelerator.clip_grad_norm_(self.decoder.parameters(), limit))
        self.optimiser.step()
        self.optimiser.zero_grad()
        if self.accelerator.scaler is not None and self.optimiser.step_was_skipped:
            self.skipped += 1
            return 0.0
        self.updates += 1
        if self.average is not None:
            self.average.update(self.updates)
        return norm

    def model_tensors(self) -> dict[str, Tensor]:
        return {
            name: value.detach().float().cpu().clone() for name, value in self.decoder.state_dict().items()
        }

    def _set_weight(self, parameter: nn.Parameter, value: Tensor) -> None:
        parameter.data.copy_(value)

    def optimiser_tensors(self) -> dict[str, Tensor]:
        tensors = plain_state(self.optimiser.optimizer, self.decoder)
        if self.accelerator.scaler is not None:
            state = self.accelerator.scaler.state_dict()
            tensors |= {f"{SCALER}{name}": torch.tensor(float(state[name])) for name in _SCALER_STATE}
        return tensors

    def load_optimiser(self, tensors: Mapping[str, Tensor]) -> None:
        load_plain_state(self.optimiser.optimizer, self.decoder, tensors)
        self.updates = int(tensors["count"])
        if self.accelerator.scaler is not None and f"{SCALER}scale" in tensors:
            state = self.accelerator.scaler.state_dict()
            state["scale"] = float(tensors[f"{SCALER}scale"])
            state["_growth_tracker"] = int(tensors[f"{SCALER}_growth_tracker"])
            self.accelerator.scaler.load_state_dict(state)
