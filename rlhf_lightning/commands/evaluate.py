"""rlhf-evaluate: compares policies on held-out prompts."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_lightning.commands.command_line import run_hydra_command
from rlhf_lightning.commands.help import evaluate_help
from rlhf_lightning.config.checks import (
    check_hashes,
    check_no_split_of_a_file,
    missing_locally,
    refuse_reward_model,
)
from rlhf_lightning.config.effects import check_samples
from rlhf_lightning.config.schema import Evaluate
from rlhf_lightning.config.source_lookup import check_function
from rlhf_lightning.config.spelling import did_you_mean, nearest
from rlhf_lightning.config.validation import validate
from rlhf_lightning.errors import UserError, named_as
from rlhf_lightning.runs.folder_lock import check_run_dir
from rlhf_lightning.runs.run_folder import choose_run_dir, write_config, write_summary
from rlhf_lightning.setting_rules import check_reward
from rlhf_lightning.stopping import held


def main() -> None:
    """The entry point of rlhf-evaluate."""
    run_hydra_command("rlhf-evaluate", "evaluate", evaluate, evaluate_help)


def check(config: Mapping[str, Any]) -> None:
    """Everything that can be known to be wrong without importing torch."""
    validate(config, Evaluate)
    check_samples(config)
    policies = config["policies"]
    if not policies:
        raise UserError("policies: none given; allowed: {name: folder, ...}")
    for key in ("baseline", "reference"):
        name = config.get(key)
        if name is not None and name not in policies:
            match = did_you_mean(nearest(name, policies))
            raise UserError(f'{key}: found "{name}"; allowed: one of the policies ({", ".join(policies)}){match}')
    paths = {f"policies.{name}": path for name, path in policies.items()} | {"prompts": config["prompts"]}
    for key in ("gold", "proxy"):
        reward = config.get(key) or {}
        if _scores(reward):
            check_reward(reward, f"{key}.")
            check_function(f"{key}.function", reward.get("function"))
        elif reward.get("dtype", "float32") != "float32" or reward.get("attn_implementation"):
            raise UserError(f"{key}.dtype and {key}.attn_implementation: they have no effect without {key}.model")
        if reward.get("model"):
            paths[f"{key}.model"] = reward["model"]
    for key, path in paths.items():
        if missing_locally(path):
            raise UserError(f"{key}: {path} does not exist")
        if key != "prompts":
            check_hashes(key, path)
    for name, path in policies.items():
        refuse_reward_model(f"policies.{name}", path)
    check_no_split_of_a_file("prompts", config["prompts"])


def _scores(reward: Mapping[str, Any]) -> bool:
    return bool(reward.get("function") or reward.get("model"))


def evaluate(config: dict[str, Any]) -> None:
    """Sample, score, print the table, and write the report."""
    check(config)
    started = time.monotonic()
    folder = choose_run_dir({**config, "name": "evaluate"})
    check_run_dir(folder)

    from rich.console import Console

    from rlhf_lightning.evaluation import evaluate_policies, terminal_table, write_report
    from rlhf_lightning.rewards import make_reward

    scorers: dict[str, Any] = {"gold": None, "proxy": None}
    for key in scorers:
        if _scores(config.get(key) or {}):
            with named_as(f"{key}.model"):
                scorers[key] = make_reward(**config[key])
    reference = config.get("reference") or config["baseline"]
    evaluation = evaluate_policies(
        policies=config["policies"],
        prompts_file=config["prompts"],
        baseline=config["baseline"],
        reference=config["policies"][reference],
        gold=scorers["gold"],
        proxy=scorers["proxy"],
        samples_per_prompt=config["samples_per_prompt"],
        max_new_tokens=config["max_new_tokens"],
        temperature=config["temperature"],
        batch_size=config["batch_size"],
        seed=config["seed"],
        dtype=config["dtype"],
        attn_implementation=config["attn_implementation"],
    )
    with held():
        write_config(folder, config)  # nothing of an earlier evaluation changes before this one is whole
        files: list[Path] = write_report(folder, evaluation, {}, "rlhf-evaluate")
        write_summary(folder, {**evaluation.flat(), "wall_seconds": round(time.monotonic() - started, 2)})
    Console().print(terminal_table(evaluation))
    for file in files:
        print(f"report: {file}")
