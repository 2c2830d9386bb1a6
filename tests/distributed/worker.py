"""The worker of tests/distributed: runs each module for one optimiser step, and saves the result.

python -m torch.distributed.run --nproc-per-node=2 -m tests.distributed.worker FOLDER STRATEGY
"""

from __future__ import annotations

import atexit
import json
import os
import sys
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from rlhf_lightning.algorithms import (
    CostModule,
    CostMultiplier,
    CPOModule,
    DPOModule,
    GKDModule,
    ILQLModule,
    KLPenalty,
    KTOModule,
    OnlineDPOModule,
    OnPolicyModule,
    ORPOModule,
    PolicyGradientModule,
    PPOLagrangianModule,
    PPOModule,
    ProcessRewardModule,
    RAFTModule,
    RewardModule,
    SFTModule,
    SimPOModule,
)
from rlhf_lightning.callbacks import OverOptimization
from rlhf_lightning.data import (
    PreferenceDataModule,
    PromptDataModule,
    RewardedDataModule,
    SafetyDataModule,
    SFTDataModule,
    StepDataModule,
    UnpairedDataModule,
)
from rlhf_lightning.models import LoRA, load_causal_lm, load_process_reward_model, load_reward_model
from rlhf_lightning.process.collectives import let_collectives_end
from rlhf_lightning.rollout import Generation, RolloutSettings
from rlhf_lightning.training.strategies import FullySharded
from tests.tiny import WORDS, tiny_model, tiny_tokenizer

GLOBAL_BATCH = 8
SGD = partial(torch.optim.SGD, lr=1.0)
OFFLINE: dict[str, Any] = {
    "dpo": DPOModule,
    "orpo": ORPOModule,
    "simpo": SimPOModule,
    "cpo": CPOModule,
    "kto": KTOModule,
    "ilql": partial(ILQLModule, target_rate=0.3),
}
SEQUENCE = {"ratio": "sequence", "aggregation": "sequence", "clip_range": 0.04}
WEIGHTED = {"loss_type": "cispo", "clip_range": None, "clip_range_high": 4.0}
# The last three leave some responses out of the loss, not the same number on every process.
GROUPED: dict[str, tuple[Any, dict[str, Any]]] = {
    "rloo": (PolicyGradientModule, {"estimator": "leave_one_out"}),
    "dr": (PolicyGradientModule, {"estimator": "group_mean", "denominator": "max_new_tokens"}),
    "gspo": (PolicyGradientModule, SEQUENCE),
    "cispo": (PolicyGradientModule, WEIGHTED),
    "dapo": (PolicyGradientModule, {"accuracy": "score", "accuracy_threshold": 1.0, "max_tries": 1}),
    "online": (OnlineDPOModule, {}),
    "raft": (RAFTModule, {}),
}
NAMES = (
    "sft",
    "reward",
    "cost",
    "process",
    "dpo",
    "orpo",
    "simpo",
    "cpo",
    "kto",
    "ilql",
    "gkd",
    "ppo",
    "sft_lora",
    "ppo_lora",
    "ppo_parts_accumulated",
    "ppo_lora_parts",
    "grpo",
    "reinforce",
    "rloo",
    "dr",
    "gspo",
    "cispo",
    "dapo",
    "online",
    "raft",
    "lagrangian",
)


class Echo:
    """An engine whose responses are functions of the prompt: the same prompts give the same rollout everywhere."""

    def sync(self, model: Any) -> None:
        """Nothing to copy."""

    def generate(self, prompts: list[list[int]], settings: Any, generator: Any = None) -> Generation:
        """Return a response of 1 to 5 tokens, ending in EOS; a different one each time a prompt is repeated."""
        seen: Counter[tuple[int, ...]] = Counter()
        rows = []
        for prompt in map(tuple, prompts):
            number = sum(prompt) + seen[prompt]
            rows.append([3 + (7 * number + i) % 26 for i in range(number % 5)] + [1])
            seen[prompt] += 1
        tokens, mask = torch.zeros(len(rows), 6, dtype=torch.long), torch.zeros(len(rows), 6)
        for row, (ids, flags) in zip(rows, zip(tokens, mask, strict=True), strict=True):
            ids[: len(row)], flags[: len(row)] = torch.tensor(row), 1.0
        width = max(map(len, rows))
        return Generation(tokens[:, :width], mask[:, :width], torch.zeros(len(rows), width), mask.sum(dim=1) > 0)


def early(prompts: list[str], responses: list[str], **columns: Any) -> list[float]:
    """Count words from the first half of the alphabet."""
    return [float(sum(word < "n" for word in response.split())) for response in responses]


def length(prompts: list[str], responses: list[str], **columns: Any) -> list[float]:
    """Count all words: a cost."""
    return [float(len(response.split())) for response in responses]


def prompts(tokenizer: Any) -> PromptDataModule:
    """Return twenty prompts, and seven held-out ones, which two processes cannot share equally."""
    rows = [{"prompt": f"{a} {b}"} for a in WORDS[:5] for b in WORDS[5:9]]
    return PromptDataModule(tokenizer, rows, [{"prompt": " ".join(WORDS[9 : 11 + i])} for i in range(7)])


def build(name: str, folder: Path, world: int, engine: Any = None) -> tuple[Any, Any]:
    """Return a module and its data, with the same global batch for any number of processes."""
    tokenizer, (algorithm, *variants) = tiny_tokenizer(), name.split("_")
    settings: dict[str, Any] = {"dropout": False, "adapter": LoRA(rank=4) if "lora" in variants else None}
    load, size = partial(load_causal_lm, folder, **settings), GLOBAL_BATCH // world
    if algorithm == "sft":
        rows = [{"prompt": WORDS[i], "completion": " ".join(WORDS[i : i + 1 + i % 6])} for i in range(15)]
        return SFTModule(load, tokenizer, SGD), SFTDataModule(tokenizer, rows, batch_size=size)
    if algorithm in ("ppo", "lagrangian"):
        limit = {"cost": length, "cost_limit": 2.0, "multiplier": CostMultiplier(ki=1.0)}
        module = (PPOModule if algorithm == "ppo" else partial(PPOLagrangianModule, **limit))(
            load,
            tokenizer,
            SGD,
            reward=early,
            rollout=RolloutSettings(max_new_tokens=6, batch_size=size),
            kl=KLPenalty(target=0.5, horizon=20),
            ppo_epochs=2,
            num_minibatches=1,
            # One process computes the minibatch at once; two, whose rows differ in length, compute the same number of
            # parts.
            tokens_per_microbatch=10 if "parts" in variants and world > 1 else None,
            engine=engine,
        )
        return module, prompts(tokenizer)
    if algorithm in ("grpo", "reinforce"):
        group = {"estimator": "group_mean", "scale": "std", "aggregation": "sequence"}
        module = PolicyGradientModule(
            load,
            tokenizer,
            SGD,
            reward=early,
            rollout=RolloutSettings(max_new_tokens=6, batch_size=size // 2, samples_per_prompt=2),
            kl=KLPenalty(target=0.5, horizon=20, placement="loss" if algorithm == "grpo" else "reward"),
            ppo_epochs=2,
            num_minibatches=1,
            engine=engine,
            **(group if algorithm == "grpo" else {"estimator": "returns", "whiten_advantages": True}),
        )
        return module, prompts(tokenizer)
    if algorithm in GROUPED:
        kind, own = GROUPED[algorithm]
        rollout = RolloutSettings(max_new_tokens=6, batch_size=size // 2, samples_per_prompt=2)
        further = {"rollout": rollout, "ppo_epochs": 2, "num_minibatches": 1, "engine": engine, **own}
        return kind(load, tokenizer, SGD, reward=early, **further), prompts(tokenizer)
    rows = [
        {"prompt": WORDS[i], "chosen": " ".join(WORDS[i : i + 1 + i % 4]), "rejected": WORDS[i + 1]} for i in range(15)
    ]
    data: Any = PreferenceDataModule(tokenizer, rows, batch_size=size)
    if algorithm == "kto":  # with two answers of most prompts
        data = UnpairedDataModule(tokenizer, rows[:7], rows[:3], batch_size=size)
    if algorithm == "ilql":
        answers = [
            {"prompt": row["prompt"], "completion": row["chosen"], "reward": 0.25 * (i % 3)}
            for i, row in enumerate(rows)
        ]
        data = RewardedDataModule(tokenizer, answers, answers[:3], batch_size=size)
    if algorithm == "gkd":
        answers = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows]
        data = SFTDataModule(tokenizer, answers, answers[:3], batch_size=size)
        teacher = {"teacher": str(folder.parent / "teacher"), "lmbda": 1.0, "max_new_tokens": 6, "engine": engine}
        return GKDModule(load, tokenizer, SGD, **teacher), data
    if algorithm == "process":
        lengths = [1 + i % 4 for i in range(15)]
        steps = [{"completions": [f" {word}" for word in WORDS[:n]], "labels": [n % 3 > 0] * n} for n in lengths]
        solutions = [{"prompt": word, **each} for word, each in zip(WORDS, steps, strict=False)]
        data = StepDataModule(tokenizer, solutions, solutions[:3], batch_size=size, step_separator=" z")
        return ProcessRewardModule(partial(load_process_reward_model, folder), tokenizer, SGD), data
    if algorithm == "cost":
        labelled = [{**row, "chosen_safe": True, "rejected_safe": i % 2 > 0} for i, row in enumerate(rows)]
        data = SafetyDataModule(tokenizer, labelled, labelled[:3], batch_size=size)
        return CostModule(partial(load_reward_model, folder), tokenizer, SGD), data
    if algorithm in OFFLINE:
        return OFFLINE[algorithm](load, tokenizer, SGD), data
    return RewardModule(partial(load_reward_model, folder), tokenizer, SGD), data


class Falling:
    """A scorer whose scores fall at the third validation, only on the second process, by more than tolerated."""

    def __init__(self, rank: int) -> None:
        self.scores = iter([0.0, 1.0, 0.5, 0.5, 0.5] if rank == 1 else [0.0, 1.0, 0.82, 0.82, 0.82])

    def __call__(self, prompts: list[str], responses: list[str], **columns: Any) -> list[float]:
        return [next(self.scores)] * len(responses)


def trainer(folder: Path, strategy: Any, world: int, precision: Any = "32-true") -> L.Trainer:
    """Return a quiet Trainer over the processes that torchrun started, on as many nodes as it has agents."""
    nodes = world // int(os.environ.get("LOCAL_WORLD_SIZE", world))
    settings: dict[str, Any] = {
        "max_epochs": 1,
        "accelerator": "cpu",
        "devices": world // nodes,
        "num_nodes": nodes,
        "strategy": strategy,
        "precision": precision,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "num_sanity_val_steps": 0,
        "default_root_dir": folder,
        "log_every_n_steps": 1,
    }
    return L.Trainer(**settings)


def whole(tensor: Tensor) -> Tensor:
    """Return a weight as a single process would have it."""
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()


def trained(folder: Path, name: str, strategy: Any, world: int, engine: Any) -> tuple[dict[str, Any], Any]:
    """Return weights and metrics after an epoch: two uneven batches, or one iteration of PPO."""
    torch.manual_seed(0)
    module, data = build(name, folder, world, engine)
    fit = trainer(folder, strategy, world)
    if "accumulated" in name and world > 1:  # one process takes the minibatch at once
        fit.accumulate_grad_batches = 2
    if name == "ppo":  # it logs its metrics along with the module's
        fit.callbacks.append(OverOptimization({"early": early}))  # type: ignore[attr-defined]
    fit.fit(module, data)
    weights = {key: whole(p) for key, p in module.named_parameters() if p.requires_grad}
    metrics = {key: float(value) for key, value in fit.callback_metrics.items() if not key.startswith(("time", "roll"))}
    if name == "ilql":  # the targets are not trained
        weights |= {f"targets.{key}": value for key, value in module.targets.state_dict().items()}
    controller = module.kl_controller.value if isinstance(module, OnPolicyModule) else 0.0
    found = {"weights": weights, "metrics": metrics, "controller": controller, "class": type(module).__name__}
    return found, module


def main() -> None:
    """Run every module and save the results in FOLDER."""
    folder, kind = Path(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    for name in NAMES:
        made: Any = DDPStrategy(process_group_backend="gloo") if kind == "ddp" else FullySharded("gloo")
        result, module = trained(folder / "base", name, made, world, Echo())
        module.export(folder / f"{kind}_{name}")
        if rank == 0:
            torch.save(result, folder / f"{kind}_{name}.pt")
    made = DDPStrategy(process_group_backend="gloo") if kind == "ddp" else FullySharded("gloo")
    module, _ = build("ppo", folder / "base", world)
    data = PromptDataModule(tiny_tokenizer(), [{"prompt": "a b"}])
    module.rollout = replace(module.rollout, batch_size=64, max_new_tokens=12)
    trainer(folder, made, world).fit(module, data)
    sampled = [row["response"] for row in module.last_samples]
    (folder / f"{kind}_samples_{rank}.json").write_text(json.dumps(sampled))
    made = DDPStrategy(process_group_backend="gloo") if kind == "ddp" else FullySharded("gloo")
    module, data = build("ppo", folder / "base", world, Echo())
    watched = trainer(folder, made, world)
    watched.fit_loop.max_epochs = 5
    watched.callbacks.append(OverOptimization({"gold": Falling(rank)}, 0.2, 1, True))  # type: ignore[attr-defined]
    watched.fit(module, data)
    (folder / f"{kind}_stopped_{rank}.json").write_text(json.dumps(watched.current_epoch))


def save_base(folder: Path) -> None:
    """Save the model that every process starts from."""
    for name, hidden in (("base", 32), ("teacher", 16)):
        tiny_model(hidden=hidden).save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)


if __name__ == "__main__":
    atexit.register(let_collectives_end)
    main()
