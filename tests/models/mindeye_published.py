"""Made-up published files: tensors of the published names and shapes, filled by a rule that needs no published code.

`golden/mindeye/*.npz` hold, for such weights at small sizes, what the public code of MindEye (MedARC-AI's
fMRI-reconstruction-NSD), MindEye2 (MindEyeV2) and DALLE2-pytorch computes of them: names and shapes as JSON, buffers,
and every output for responses filled by the same rule. They were made by building the public classes at these sizes,
filling their state dictionaries with `filled`, and running them in evaluation mode on `given`; samples after
`torch.manual_seed` of the number in the output's name (`sampled-20` of 20 steps with seed 20; `sampled-guided` of 20
steps, scale 2, seed 5; the sample of MindEye has seed 1).
"""

import json
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden" / "mindeye"


def given(name: str, *shape: int) -> Tensor:
    """Standard normal numbers that belong to a name."""
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    return torch.from_numpy(values.astype(np.float32))


def filled(name: str, shape: tuple[int, ...]) -> Tensor:
    """Weights that keep the size of what goes through, biases of 0.1, scales around 1."""
    values = (
        np.random.RandomState(zlib.crc32(name.encode())).standard_normal(int(np.prod(shape))).reshape(shape)
    )
    if len(shape) >= 2:
        # Transformers with weights as large as the others' multiply rounding by hundreds from step to step of a sample.
        values = values * (0.3 if "transformer" in name else 1.0) / np.sqrt(np.prod(shape[1:]))
    else:
        values = 0.1 * values if name.endswith("bias") else 1 + 0.1 * values
    return torch.from_numpy(values.astype(np.float32))


def published(generation: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The state dictionary of the golden file and the outputs of the public code."""
    with np.load(GOLDEN / f"{generation}.npz") as stored:
        shapes = json.loads(stored["shapes"].tobytes())
        arrays = {name: torch.from_numpy(stored[name]) for name in stored.files if name != "shapes"}
    weights = {name: filled(name, tuple(shape)) for name, shape in shapes.items()}
    buffers = {name.removeprefix("buffer "): v for name, v in arrays.items() if name.startswith("buffer ")}
    outputs = {name.removeprefix("output "): v for name, v in arrays.items() if name.startswith("output ")}
    return weights | buffers, outputs
