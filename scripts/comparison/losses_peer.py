"""TRL's side of `trl_agreement.py`, in an environment without the project: python -m comparison.losses_peer FOLDER"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from comparison.losses import CASES, Case


def trainer_of(case: Case, folder: Path) -> Any:
    """Return TRL's trainer, whose only batch is all rows in order."""
    import trl
    from trl.experimental.cpo import CPOConfig, CPOTrainer
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    configs = {"DPO": trl.DPOConfig, "KTO": trl.KTOConfig, "CPO": CPOConfig, "ORPO": ORPOConfig}
    trainers = {"DPO": trl.DPOTrainer, "KTO": trl.KTOTrainer, "CPO": CPOTrainer, "ORPO": ORPOTrainer}
    rows = json.loads((folder / ("labelled.json" if case.trainer == "KTO" else "pairs.json")).read_text())
    compares = case.trainer in ("DPO", "KTO")
    settings = configs[case.trainer](
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=len(rows),
        max_length=64,
        beta=case.beta,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        **({"train_sampling_strategy": "sequential"} if compares else {}),
        **case.peer,
    )
    load = AutoModelForCausalLM.from_pretrained
    return trainers[case.trainer](
        model=load(folder / "policy", dtype=torch.float32),
        args=settings,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(folder / "policy"),
        **({"ref_model": load(folder / "reference", dtype=torch.float32)} if compares else {}),
    )


def main() -> None:
    """Write the loss and the gradient of every case to FOLDER."""
    folder = Path(sys.argv[1])
    found = {}
    for case in CASES:
        trainer = trainer_of(case, folder)
        trainer.model.train()
        batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
        loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
        gradients = {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}
        found[case.key] = {"loss": loss.detach(), "gradients": gradients}
    torch.save(found, folder / "peer.pt")


if __name__ == "__main__":
    main()
