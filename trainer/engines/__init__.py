"""Two engines behind one small interface: DeepSpeed for many processes, Accelerate for one device.

Optimiser state leaves an engine as whole float32 tensors named after the parameters, and enters another engine the
same way, so a run can go on at another world size, ZeRO stage or engine.
"""

from fmri2img.trainer.engines.accelerated import AccelerateEngine
from fmri2img.trainer.engines.interface import Engine
from fmri2img.trainer.engines.zero import DeepSpeedEngine

__all__ = ["AccelerateEngine", "DeepSpeedEngine", "Engine"]
