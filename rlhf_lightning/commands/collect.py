"""rlhf-collect: what policies answer to prompts, as tasks for people or a judge to compare."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf_lightning.commands.command_line import run_hydra_command
from rlhf_lightning.commands.feedback_help import collect_help
from rlhf_lightning.commands.progress_bar import progress_bar
from rlhf_lightning.config.feedback_checks import check_collect, rewards_of_pairs
from rlhf_lightning.errors import named_as

_ASKING = ("choice", "pairs", "overlap", "overlap_share", "reask", "seed")
_DRAWING = (
    *("samples_per_prompt", "max_new_tokens", "max_prompt_length", "temperature", "batch_size", "seed"),
    *("dtype", "attn_implementation"),
)


def main() -> None:
    """The entry point of rlhf-collect."""
    run_hydra_command("rlhf-collect", "collect", collect, collect_help)


def check(config: Mapping[str, Any]) -> None:
    """Everything that can be known to be wrong without importing torch.

    Raises:
        UserError: one line about the first thing.
    """
    check_collect(config)
    from rlhf_lightning.feedback.tasks import check_asking

    asking, drawing = _asking(config), _drawing(config)
    count = len(config["policies"] or {}) * drawing.samples_per_prompt if config.get("prompts") else None
    check_asking(asking, count, bool(rewards_of_pairs(config["reward"])))


def _asking(config: Mapping[str, Any]) -> Any:
    from rlhf_lightning.feedback.tasks import Asking

    return Asking(**{name: config[name] for name in _ASKING}, limit=config["max_tasks"])


def _drawing(config: Mapping[str, Any]) -> Any:
    from rlhf_lightning.feedback.drawing import Drawing

    return Drawing(**{name: config[name] for name in _DRAWING})


def collect(config: dict[str, Any]) -> None:
    """Read the rows, sample what is missing, and add the tasks."""
    check(config)
    from rlhf_lightning.feedback.collecting import add_tasks, collect_tasks, outlook
    from rlhf_lightning.feedback.scoring import responses_scored
    from rlhf_lightning.feedback.sources import read_checks, read_prompts, read_responses
    from rlhf_lightning.feedback.store import FeedbackStore
    from rlhf_lightning.rewards import make_reward

    asking, drawing, url = _asking(config), _drawing(config), config["feedback"]["store"]
    checks = read_checks(config["checks"], asking.seed) if config["checks"] else []
    if config["prompts"]:
        prompts = read_prompts(config["prompts"], config["limit"])
    else:
        samples = read_responses(config["responses"], config["limit"])
    if config["explain"]:
        asked = outlook(url, prompts, config["policies"], drawing) if config["prompts"] else [f"{len(samples)} prompts"]
        print("\n".join(asked))
        return
    with named_as("reward.model"):
        rewards = [make_reward(**settings) for settings in rewards_of_pairs(config["reward"])]
    with FeedbackStore(url) as store, progress_bar() as watch:
        if config["prompts"]:
            done = collect_tasks(
                store, prompts, config["policies"], asking, drawing, rewards=rewards, checks=checks, watch=watch
            )
            added, there = done.added, done.there
            lines = [f"sampled: {done.sampled} responses to {done.prompts} prompts; {done.known} were there"]
        else:
            added, there = add_tasks(store, responses_scored(samples, rewards, watch), asking, checks)
            lines = [f"read: {sum(len(each.responses) for each in samples)} responses to {len(samples)} prompts"]
        lines.append(f"tasks: {added} new in {store.name}; {there} were there")
    print("\n".join(lines))
    print(f"next: rlhf-label labelers=[ana,bo]{_store_key(url)}")


def _store_key(url: str) -> str:
    from rlhf_lightning.feedback.store import DEFAULT_STORE

    return "" if url == DEFAULT_STORE else " feedback.store=..."
