"""Loss and gradient of every algorithm on given answers beside TRL's own trainer, same tiny model, same rows.

python scripts/trl_agreement.py        # the tables of docs/algorithms

TRL 1.16.0 runs in an environment of its own, `.venv-trl-1.16.0`, which is made when it is missing. The policy is the
reference with noise on every weight. Where the two take the negative log-likelihood of other tokens, on purpose, the
table has the difference as it is, and the one once our term is replaced by theirs.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from comparison.environments import peer_python
from comparison.inputs import random_llama
from comparison.losses import CASES, Case
from comparison.rows import TRL
from comparison.workers import OFFLINE, SCRIPTS
from torch import Tensor
from torch.nn.functional import cross_entropy

from rlhf_lightning import algorithms
from rlhf_lightning.data import PreferenceDataModule, UnpairedDataModule
from rlhf_lightning.models import load_causal_lm, load_tokenizer, save_model
from rlhf_lightning.process.quiet import quieten

ROWS, NOISE, TOLERANCE = 8, 0.01, 1e-5


def write_inputs(folder: Path) -> None:
    """The reference, the policy, and rows of different lengths."""
    random_llama(folder / "reference", 2, 64)
    policy, generator = load_causal_lm(folder / "reference"), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(NOISE * torch.randn(parameter.shape, generator=generator))
    save_model(policy, load_tokenizer(folder / "reference"), folder / "policy")
    words = random.Random(0)

    def text(least: int) -> str:
        return " ".join(f"w{words.randrange(3, 2048)}" for _ in range(words.randint(least, 9)))

    pairs = [{"prompt": text(2), "chosen": f" {text(1)}", "rejected": f" {text(1)}"} for _ in range(ROWS)]
    labelled = [
        {"prompt": row["prompt"], "completion": row["chosen" if i % 3 else "rejected"], "label": bool(i % 3)}
        for i, row in enumerate(pairs)
    ]
    (folder / "pairs.json").write_text(json.dumps(pairs))
    (folder / "labelled.json").write_text(json.dumps(labelled))


def our_side(case: Case, folder: Path, swapped: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """Our loss and gradient; `swapped`: with TRL's negative log-likelihood instead of our own."""
    make, tokenizer = getattr(algorithms, case.module), load_tokenizer(folder / "reference")
    load = partial(load_causal_lm, folder / "reference")
    module: Any = make(load, tokenizer, partial(torch.optim.SGD, lr=0.0), beta=case.beta, **case.ours)
    unpaired = make.data == "unpaired"
    rows = json.loads((folder / ("labelled.json" if unpaired else "pairs.json")).read_text())
    data = (UnpairedDataModule if unpaired else PreferenceDataModule)(tokenizer, rows, batch_size=ROWS)
    data.setup("fit")
    loader = data.train_dataloader()
    loader.shuffle = False
    batch: Any = next(iter(loader))
    module.configure_model()
    module.model.load_state_dict(load_causal_lm(folder / "policy").state_dict())
    module.gather = lambda x: x.unsqueeze(0)  # one process, without a Trainer
    loss = module.training_step(batch, 0)
    assert not unpaired or float(module.z) > 0.0, "the reference point is at its floor, so it is not compared"
    if swapped:
        coefficient = module.nll_coef
        chosen = batch.pairs[:, 0]
        ours = -module.answers(batch)[chosen].mean_logps.mean()
        flags = batch.attention_mask if case.nll == "rows" else batch.completion_mask
        labels = batch.input_ids.masked_fill(flags == 0, -100)[chosen, 1:]
        logits = module.model(batch.input_ids, attention_mask=batch.attention_mask).logits[chosen, :-1]
        loss = loss + coefficient * (cross_entropy(logits.flatten(0, 1), labels.flatten()) - ours)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in module.model.named_parameters() if p.grad is not None}


def differences(ours: tuple[Tensor, dict[str, Tensor]], peer: dict[str, Any]) -> tuple[float, float]:
    """Of the losses, and the largest of any weight's gradients."""
    loss, gradients = ours
    assert gradients.keys() == peer["gradients"].keys()
    apart = [float((gradient - peer["gradients"][name]).abs().max()) for name, gradient in gradients.items()]
    return float((loss - peer["loss"]).abs()), max(apart)


def main() -> None:
    """Print the table; exit with 1 where a difference is above 1e-5."""
    quieten()
    torch.set_num_threads(1)
    failed = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_inputs(folder)
        environment = {**os.environ, **OFFLINE, "PYTHONPATH": str(SCRIPTS), "OMP_NUM_THREADS": "1"}
        command = [str(peer_python(TRL)), "-m", "comparison.losses_peer", str(folder)]
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        peer = torch.load(folder / "peer.pt", weights_only=True)
        print("| | TRL's loss | difference of the loss | of the gradient | both, with our own NLL term |")
        print("|---|---|---|---|---|")
        for case in CASES:
            as_it_is = differences(our_side(case, folder, swapped=False), peer[case.key])
            same = differences(our_side(case, folder, swapped=True), peer[case.key]) if case.nll else as_it_is
            before = f"{as_it_is[0]:.1e}, {as_it_is[1]:.1e}" if case.nll else ""
            cells = [case.key, f"{float(peer[case.key]['loss']):.6f}", f"{same[0]:.1e}", f"{same[1]:.1e}", before]
            print(f"| {' | '.join(cells)} |", flush=True)
            failed += [case.key] if max(same) > TOLERANCE else []
    if failed:
        raise SystemExit(f"above {TOLERANCE:g}: {', '.join(failed)}")


if __name__ == "__main__":
    main()
