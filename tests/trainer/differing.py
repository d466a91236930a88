"""Two processes at ZeRO 3 whose forward passes differ: `python differing.py FOLDER RANK WORLD SPEC`.

Writes what training said in each process, by case, as JSON. At this stage parameters are gathered as modules are
called, so without a guard these processes would wait for each other for ever.
"""

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fmri2img.errors import Fmri2imgError
from fmri2img.models.decoder import MultiSubjectDecoder
from fmri2img.trainer.stages import StageSpec, pretrain

Forward = Callable[..., Any]
usual: Forward = MultiSubjectDecoder.forward


def heads_the_other_way(decoder: MultiSubjectDecoder, responses: Mapping[str, Tensor], *others: Any) -> Any:
    """The same numbers, but the last subject's head is called first."""
    ready = {name: decoder.heads[name](responses[name]) for name in reversed(list(responses))}

    class Ready(torch.nn.Module):
        def __init__(self, rows: Tensor) -> None:
            super().__init__()
            self.rows = rows

        def forward(self, _: Tensor) -> Tensor:
            return self.rows

    heads, decoder.heads = decoder.heads, torch.nn.ModuleDict({n: Ready(r) for n, r in ready.items()})
    try:
        return usual(decoder, responses, *others)
    finally:
        decoder.heads = heads


def once_more_at_the_end(decoder: MultiSubjectDecoder, responses: Mapping[str, Tensor], *others: Any) -> Any:
    """A pass that is as long as the other's and then goes on."""
    outputs = usual(decoder, responses, *others)
    next(decoder.backbone.children())(outputs[0], outputs[0])
    return outputs


CASES: dict[str, Forward] = {"order": heads_the_other_way, "more": once_more_at_the_end, "same": usual}


def main(folder: Path, rank: int, world: int, spec: dict[str, Any]) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=world)
    told = {}
    for name, forward in CASES.items():
        MultiSubjectDecoder.forward = forward if rank else usual  # type: ignore[method-assign]
        run = {**spec, "subjects": tuple(spec["subjects"]), "run": str(folder / name)}
        try:
            told[name] = pretrain(StageSpec(**run)).name
        except Fmri2imgError as error:
            told[name] = str(error)
    (folder / f"told-{rank}.json").write_text(json.dumps(told))
    dist.barrier()
    os._exit(0)  # engines that stopped within a pass have nothing to tidy up


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), json.loads(Path(sys.argv[4]).read_text()))
