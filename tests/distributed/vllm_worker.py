"""The worker of test_vllm_server: PPO with one server for all processes, until the server dies.

python -m torch.distributed.run --nproc-per-node=2 -m tests.distributed.vllm_worker FOLDER STRATEGY ADDRESS
"""

from __future__ import annotations

import atexit
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy

from rlhf_lightning.errors import UserError
from rlhf_lightning.process.collectives import let_collectives_end
from rlhf_lightning.rollout import VLLMRollout, VLLMServer
from rlhf_lightning.rollout.vllm_client import VLLMClient
from rlhf_lightning.training.strategies import FullySharded
from tests.distributed.worker import build, trainer


def main() -> None:
    """Run two iterations with each policy, then one too many."""
    folder, kind, address = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    torch.set_num_threads(1)
    rank, result = int(os.environ["RANK"]), {}
    for name in ("ppo", "ppo_lora", "dies"):
        settings = VLLMRollout(server=address, batch_size=4, max_new_tokens=6)
        client = VLLMClient(address, attempts=2, pause=0.01)
        module, data = build("ppo_lora" if name == "dies" else name, folder / "base", 2)
        module.rollout, module.engine = settings, VLLMServer(0, [1], settings, client)
        data.val = None
        made: Any = DDPStrategy(process_group_backend="gloo") if kind == "ddp" else FullySharded("gloo")
        fit = trainer(folder, made, 2)
        fit.fit_loop.max_epochs = 2
        try:
            fit.fit(module, data)
        except UserError as error:
            result[name] = str(error)
        else:
            metrics = {key: float(value) for key, value in fit.callback_metrics.items()}
            result[name] = [metrics, [row["response"] for row in module.last_samples]]
    (folder / f"vllm_{kind}_{rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    atexit.register(let_collectives_end)
    main()
