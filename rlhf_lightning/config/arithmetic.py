"""The batch arithmetic of a run: numbers of prompts, responses, minibatches and optimiser steps. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_lightning.config.kernel_choice import kernels_line
from rlhf_lightning.setting_rules import check_parts
from rlhf_lightning.source.constructors import setting
from rlhf_lightning.source.declarations import declaration, declared_data


def processes(config: Mapping[str, Any]) -> tuple[int, str]:
    """Return the number of processes of the run, and a note if only the machine that runs it can tell."""
    trainer = config["trainer"]
    devices, nodes = trainer.get("devices", "auto"), trainer.get("num_nodes", 1)
    if isinstance(devices, list):
        return len(devices) * nodes, ""
    if isinstance(devices, int):
        return devices * nodes, ""
    return nodes, f" (trainer.devices={devices} counted as 1)"


def check_arithmetic(config: Mapping[str, Any]) -> None:
    """Raise UserError if a rollout does not divide into its minibatches and micro-batches."""
    if not declaration(config).on_policy:
        return
    prompts, samples = setting(config["rollout"], "batch_size"), trained_per_prompt(config)
    minibatches = setting(config["algorithm"], "num_minibatches", 1)
    accumulate = config["trainer"].get("accumulate_grad_batches", 1)
    check_parts(prompts, samples, minibatches, accumulate, declaration(config).whole_groups)


def samples_per_prompt(config: Mapping[str, Any]) -> int:
    """Return the number of responses to each prompt of a rollout."""
    return int(setting(config["rollout"], "samples_per_prompt", 1))


def trained_per_prompt(config: Mapping[str, Any]) -> int:
    """Return how many of the responses to a prompt are trained on."""
    return declaration(config).trained_per_prompt or samples_per_prompt(config)


def ppo_arithmetic(config: Mapping[str, Any]) -> dict[str, int]:
    """Return the counts of an algorithm that samples; one iteration is one Trainer epoch.

    >>> ppo = {"_target_": "rlhf_lightning.algorithms.PPOModule", "ppo_epochs": 4, "num_minibatches": 8}
    >>> config = {"rollout": {"batch_size": 64}, "algorithm": ppo,
    ...           "trainer": {"devices": 2, "max_epochs": 10, "accumulate_grad_batches": 2}}
    >>> ppo_arithmetic(config)["optimiser steps per iteration"]
    32
    """
    check_arithmetic(config)
    world, _ = processes(config)
    trainer, algorithm = config["trainer"], config["algorithm"]
    prompts = setting(config["rollout"], "batch_size") * world
    responses, trained = prompts * samples_per_prompt(config), prompts * trained_per_prompt(config)
    accumulate = trainer.get("accumulate_grad_batches", 1)
    minibatches, passes = setting(algorithm, "num_minibatches", 1), setting(algorithm, "ppo_epochs", 1)
    steps = passes * minibatches
    iterations = _epochs(trainer, steps)
    counts = {
        "processes": world,
        "prompts per iteration": prompts,
        "responses per prompt": samples_per_prompt(config),
        "responses per iteration": responses,
        **_tries(algorithm, prompts, responses),
        **({"responses trained on per iteration": trained} if trained != responses else {}),
        "passes over a rollout": passes,
        "minibatches per pass": minibatches,
        "responses per minibatch": trained // minibatches,
        "micro-batches per minibatch and process": accumulate,
        "responses per micro-batch": trained // world // minibatches // accumulate,
        "optimiser steps per iteration": steps,
    }
    if iterations is None:
        return counts
    return {
        "iterations": iterations,
        **counts,
        "responses in total": responses * iterations,
        **{f"{name} in total": n * iterations for name, n in _tries(algorithm, 0, responses).items() if n},
        "optimiser steps in total": _steps(trainer, steps * iterations),
    }


def _tries(algorithm: Mapping[str, Any], prompts: int, responses: int) -> dict[str, int]:
    """Return upper bounds of what is sampled where prompts are sampled again, with names of their own."""
    if not setting(algorithm, "accuracy"):
        return {}
    tries = int(setting(algorithm, "max_tries", 1))
    return {"sampled prompts, at most": prompts * tries, "sampled responses, at most": responses * tries}


def supervised_arithmetic(config: Mapping[str, Any]) -> dict[str, int]:
    """Return the counts of an algorithm that reads rows; those that need an unknown number of rows are left out."""
    world, _ = processes(config)
    trainer, data = config["trainer"], config["data"]
    accumulate = trainer.get("accumulate_grad_batches", 1)
    rows_per_batch = data.get("batch_size", 1) * world
    counts = {
        "processes": world,
        "rows per batch and process": data.get("batch_size", 1),
        "rows per batch": rows_per_batch,
        "batches per optimiser step": accumulate,
        "rows per optimiser step": rows_per_batch * accumulate,
    }
    rows = count_rows(data.get("train"), data.get("limit"))
    if rows is None:
        return counts
    if data.get("val") is None:
        rows -= int(rows * data.get("val_fraction", 0.0))
    if declared_data(config) == "unpaired":
        answers = answers_per_row(data["train"])
        if answers is None:
            return counts
        rows *= answers
        counts["answers per row"] = answers
    batches = _batches(trainer, math.ceil(rows / rows_per_batch))
    steps = math.ceil(batches / accumulate)
    counts |= {"rows": rows, "optimiser steps per epoch": steps}
    epochs = _epochs(trainer, steps)
    if epochs is None:
        return counts
    return {
        **counts,
        "epochs": epochs,
        "rows in total": min(rows, batches * rows_per_batch) * epochs,
        "optimiser steps in total": _steps(trainer, steps * epochs),
    }


def count_rows(path: Any, limit: int | None = None) -> int | None:
    """Return the number of rows of a JSONL file, at most `limit`; None if it takes more than counting lines."""
    file = Path(str(path))
    if file.suffix != ".jsonl" or not file.is_file():
        return None
    with file.open("rb") as lines:
        rows = sum(1 for line in lines if line.strip())
    return rows if limit is None else min(rows, limit)


def answers_per_row(path: str) -> int | None:
    """Return the number of answers that unpaired data makes of each JSONL row (two for a pair); None if rows differ."""
    with open(path, "rb") as lines:
        pairs = {b'"chosen"' in line for line in lines if line.strip()}
    return None if len(pairs) > 1 else 1 + any(pairs)


def explain(config: Mapping[str, Any]) -> str:
    """Return the counts as lines of text, largest units first, with the keys that set them."""
    on_policy = declaration(config).on_policy
    counts = ppo_arithmetic(config) if on_policy else supervised_arithmetic(config)
    _, note = processes(config)
    width = max(map(len, counts))
    lines = [f"{config.get('name')}: the batch arithmetic"]
    for name, value in counts.items():
        key = _KEYS.get(name, "")
        lines.append(f"  {name:<{width}}  {value:>10,}  {key}{note if name == 'processes' else ''}".rstrip())
    lines.append(f"  networks and scores: {', '.join(declaration(config).roles).replace('_', ' ')}")
    if "rows" not in counts and not on_policy:
        lines.append(
            f"  rows of {config['data'].get('train')} are counted when it is read; the totals follow from them"
        )
    elif "optimiser steps in total" not in counts:
        lines.append("  the run has no end: trainer.max_epochs=-1")
    if (kernels := kernels_line(config)) is not None:
        lines.append(kernels)
    return "\n".join(lines)


_KEYS = {
    "processes": "trainer.devices x trainer.num_nodes",
    "iterations": "trainer.max_epochs",
    "prompts per iteration": "rollout.batch_size x processes",
    "responses per prompt": "rollout.samples_per_prompt",
    "sampled prompts, at most": "algorithm.max_tries x prompts per iteration",
    "responses trained on per iteration": "of those, the ones that the algorithm chooses",
    "passes over a rollout": "algorithm.ppo_epochs",
    "minibatches per pass": "algorithm.num_minibatches",
    "micro-batches per minibatch and process": "trainer.accumulate_grad_batches",
    "optimiser steps per iteration": "algorithm.ppo_epochs x algorithm.num_minibatches",
    "rows per batch and process": "data.batch_size",
    "rows per batch": "data.batch_size x processes",
    "batches per optimiser step": "trainer.accumulate_grad_batches",
    "rows": "data.train, without val_fraction",
    "answers per row": "both answers of a pair count as rows",
    "epochs": "trainer.max_epochs",
}


def _batches(trainer: Mapping[str, Any], batches: int) -> int:
    """Return the number of batches per epoch that the trainer takes."""
    fast = trainer.get("fast_dev_run") or 0
    limit = int(fast) if fast else trainer.get("overfit_batches") or trainer.get("limit_train_batches")
    if limit is None:
        return batches
    return min(batches, limit) if isinstance(limit, int) else int(batches * limit)


def _epochs(trainer: Mapping[str, Any], steps_per_epoch: int) -> int | None:
    """Return the epochs that `trainer.max_steps` allows, the last one possibly partial; None if there is no end."""
    epochs = 1 if trainer.get("fast_dev_run") else trainer.get("max_epochs") or 0
    limit = trainer.get("max_steps", -1)
    if limit is None or limit < 0:
        return epochs if epochs >= 0 else None
    reached = math.ceil(limit / max(steps_per_epoch, 1))
    return reached if epochs < 0 else min(epochs, reached)


def _steps(trainer: Mapping[str, Any], steps: int) -> int:
    limit = trainer.get("max_steps", -1)
    return steps if limit is None or limit < 0 else min(steps, limit)
