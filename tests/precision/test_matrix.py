"""Every precision with every kind of weights, algorithm and family: starts are exact, heads and metrics in float32."""

from __future__ import annotations

import itertools
import math
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from rlhf_lightning.models import NF4, LoRA, load_causal_lm, load_process_reward_model, load_reward_model
from rlhf_lightning.models.precision import Float32Linear
from tests.algorithms.conftest import (
    CONFIGS,
    ON_POLICY,
    cost,
    dpo,
    offline,
    on_policy,
    ppo,
    process,
    reward,
    sft,
    trainer,
)
from tests.tiny import tiny_model, tiny_tokenizer

PRECISIONS = ["32-true", "bf16-mixed", "bf16-true"]
FAMILIES = ["llama", "gpt2", "qwen3"]
WEIGHTS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"adapter": LoRA(rank=4)},
    "nf4": {"adapter": LoRA(rank=4), "quantization": NF4()},
}
RUNS = [
    "sft",
    "reward",
    "dpo",
    "dpo precomputed",
    "ppo shared",
    "ppo separate",
    "kto",
    "orpo",
    "simpo",
    "cpo",
    "grpo",
    "ilql",
    "gkd",
    "process_reward",
]
SLOW = ["cost", *(name for name in ON_POLICY if name not in ("ppo", "grpo"))]
OFFLINE = {
    "kto": "KTOModule",
    "orpo": "ORPOModule",
    "simpo": "SimPOModule",
    "cpo": "CPOModule",
    "ilql": "ILQLModule",
    "gkd": "GKDModule",
}
STILL = partial(torch.optim.SGD, lr=0.0)

ALL = [*itertools.product(PRECISIONS, WEIGHTS, RUNS, FAMILIES)]
# Every precision with every kind of weights and every run, and each family with each of them.
CUT = [(p, w, r, f) for p, w, r, f in ALL if (PRECISIONS.index(p) + [*WEIGHTS].index(w) + RUNS.index(r)) % 3 == 0]
CUT = [case for case in CUT if (RUNS.index(case[2]) + PRECISIONS.index(case[0])) % 3 == FAMILIES.index(case[3])]
ALL += [*itertools.product(PRECISIONS, WEIGHTS, SLOW, FAMILIES[:1])]
CASES = [pytest.param(*case, marks=() if case in CUT else pytest.mark.slow, id="-".join(case)) for case in ALL]


class Watch(L.Callback):
    """Records, in float64, everything that is recorded; the losses; and what every head reads and returns."""

    def __init__(self) -> None:
        self.sums: dict[str, list[float]] = {}
        self.losses: list[torch.Tensor] = []
        self.heads: list[tuple[torch.Tensor, torch.Tensor, Float32Linear]] = []

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        record = pl_module.record

        def keep(name: str, value: Any, weight: Any = 1.0) -> None:
            sums = self.sums.setdefault(name, [0.0, 0.0])
            sums[0] += float(value) * float(weight)
            sums[1] += float(weight)
            record(name, value, weight)

        pl_module.record = keep
        for module in pl_module.modules():
            if isinstance(module, Float32Linear):
                module.register_forward_hook(self._of_head)

    def _of_head(self, head: Any, inputs: tuple[torch.Tensor, ...], output: Any) -> None:
        if isinstance(output, tuple):  # of chosen tokens only
            weight, bias = head.weight.detach()[inputs[1]].double(), head.bias.detach()[inputs[1]].double()
            exact = (inputs[0].detach().double() * weight).sum(dim=1) + bias
            assert output[0].dtype == head.weight.dtype == torch.float32
            assert torch.allclose(output[0].detach().double(), exact, rtol=1e-5, atol=1e-5)
            return
        self.heads.append((inputs[0].detach(), output.detach(), head))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(outputs["loss"])


def irrational(prompts: list[str], responses: list[str], **columns: Any) -> list[float]:
    """Return scores with more digits than bfloat16 has."""
    return [math.sqrt(2 + len(response)) for response in responses]


def make(run: str, base: Path, settings: dict[str, Any]) -> tuple[Any, Any]:
    load = partial(load_causal_lm, base, **settings)
    if run == "sft":
        return sft(load)
    if run in ("reward", "cost"):
        module, data = (reward if run == "reward" else cost)(base.parent, optimizer=STILL)
        module.load_model = partial(load_reward_model, base, **settings)
        return module, data
    if run == "process_reward":
        module, data = process(base.parent, optimizer=STILL)
        module.load_model = partial(load_process_reward_model, base, **settings)
        return module, data
    if run.startswith("dpo"):
        return dpo(load, optimizer=STILL, precompute_reference=run == "dpo precomputed")
    if run in OFFLINE:
        return offline(OFFLINE[run], load, optimizer=STILL)
    if run in ("grpo", *ON_POLICY):
        return on_policy(run, load, STILL, reward=irrational)
    return ppo(load, optimizer=STILL, layout=run.removeprefix("ppo "), reward=irrational)


@pytest.mark.parametrize(("precision", "weights", "run", "family"), CASES)
def test_a_run_starts_where_its_reference_is_and_counts_in_float32(
    precision: str, weights: str, run: str, family: str, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    tiny_model(family, hidden=64).save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    module, data = make(run, base, WEIGHTS[weights])
    watch = Watch()
    fit = trainer(tmp_path, precision=precision, callbacks=[watch], log_every_n_steps=100)
    fit.fit(module, data)
    logged = {**{name: float(value) for name, value in fit.callback_metrics.items()}}
    logged |= {name: float(metric.compute()) for name, metric in module._recorded().items()}  # not logged yet
    if run.startswith("dpo"):
        assert {f"{float(loss):.6f}" for loss in watch.losses} == {"0.693147"}  # lr 0: the same as the first
        assert f"{logged['val/loss']:.6f}" == "0.693147"
        assert logged["rewards/margins"] == 0.0
    if run == "kto":
        assert {float(loss) for loss in watch.losses} == {0.5}
        assert logged["val/loss"] == 0.5
        assert logged["kl/reference_point"] == logged["val/kl/reference_point"] == 0.0
    if run.split()[0] in ON_POLICY:
        assert logged["objective/kl"] == 0.0
    if run.startswith(("ppo", "grpo", "nlpo")):
        scores = [row["response"] for row in module.last_samples]
        assert logged["objective/scores"] == pytest.approx(sum(irrational(scores, scores)) / len(scores), rel=1e-6)
    assert watch.sums.keys() <= logged.keys()
    for name, (total, weight) in watch.sums.items():
        assert logged[name] == pytest.approx(total / (weight or 1.0), rel=1e-5, abs=1e-7), name
    assert {loss.dtype for loss in watch.losses} == {torch.float32}
    assert bool(watch.heads) == (run in ("reward", "cost", "process_reward", "ilql") or "critic" in module.roles)
    for states, numbers, head in watch.heads:
        assert head.weight.dtype == numbers.dtype == torch.float32
        exact = states.double() @ head.weight.detach().double().T + (0 if head.bias is None else head.bias.double())
        assert torch.allclose(numbers.double(), exact, rtol=1e-5, atol=1e-5)
    types = {p.dtype for name, p in module.named_parameters() if "norm" in name or "ln_" in name}
    assert types == {torch.bfloat16 if precision == "bf16-true" else torch.float32}
    assert {p.dtype for p in module.parameters() if p.requires_grad} <= types | {torch.float32}
    assert {b.dtype for name, b in module.named_buffers() if "inv_freq" in name} <= {torch.float32}


def test_every_algorithm_is_in_the_matrix() -> None:
    assert {run.split()[0] for run in [*RUNS, *SLOW]} == set(CONFIGS)
