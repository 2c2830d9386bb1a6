"""The worker of test_sharded.py: runs the modules on FSDP2 in half precision.

python -m torch.distributed.run --nproc-per-node=2 -m tests.precision.sharded_worker FOLDER fsdp2
"""

from __future__ import annotations

import atexit
import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule

from rlhf_lightning.models.precision import Float32Linear
from rlhf_lightning.process.collectives import let_collectives_end
from rlhf_lightning.training.strategies import FullySharded
from tests.distributed.worker import Echo, build, trainer

RUNS = (
    *((name, "bf16-mixed") for name in ("dpo", "ppo", "reward", "process")),
    ("ppo_lora", "bf16-true"),
)


def main() -> None:
    """Run them at learning rate 0, and save what the first process saw in FOLDER."""
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    torch.set_num_threads(1)
    for name, precision in RUNS:
        module, data = build(name, folder / "base", 2, Echo())
        module.make_optimizer = partial(torch.optim.SGD, lr=0.0)
        module.precompute_reference = name == "dpo"
        fit = trainer(folder / name, FullySharded("gloo"), 2, precision)
        seen: dict[str, set[str]] = {"computed": set(), "head": set(), "loss": set()}

        def watch(module: Any = module, seen: dict[str, set[str]] = seen) -> None:
            for part in module.modules():
                if isinstance(part, Float32Linear):
                    part.register_forward_hook(lambda m, x, y: seen["head"].add(f"{m.weight.dtype} {y.dtype}"))
                elif isinstance(part, torch.nn.Linear):
                    part.register_forward_hook(lambda m, x, y: seen["computed"].add(str(m.weight.dtype)))

        module.on_train_start = watch
        module.on_train_batch_end = lambda outputs, *_, seen=seen: seen["loss"].add(str(outputs["loss"].dtype))
        fit.fit(module, data)
        for part in module.modules():
            if isinstance(part, FSDPModule):
                part.reshard()  # validation leaves the outermost weights gathered
        kept = sorted({str(p.dtype) for p in module.parameters()})
        recorded = {key: float(metric.compute()) for key, metric in module._recorded().items()}
        metrics = {key: float(value) for key, value in fit.callback_metrics.items()} | recorded
        if rank == 0:
            found = {key: sorted(value) for key, value in seen.items()} | {"kept": kept, "metrics": metrics}
            (folder / f"{name}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    atexit.register(let_collectives_end)
    main()
