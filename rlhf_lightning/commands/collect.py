"""rlhf-collect: policies' responses to prompts, as tasks for people or a judge to compare."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf_lightning.commands.command_line import run_hydra_command
from rlhf_lightning.commands.progress_bar import progress_bar
from rlhf_lightning.config.feedback_checks import check_collect, rewards_of_pairs

_ASKING = ("choice", "pairs", "overlap", "overlap_share", "reask", "seed")
_DRAWING = (
    *("samples_per_prompt", "max_new_tokens", "max_prompt_length", "temperature", "batch_size", "seed"),
    *("dtype", "attn_implementation"),
)


def main() -> None:
    """Run rlhf-collect."""
    run_hydra_command("rlhf-collect", "collect", collect)


def check(config: Mapping[str, Any]) -> None:
    """Check everything that can be checked without importing torch.

    Raises:
        UserError: one line about the first problem.
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
    """Read the rows, sample missing responses, add the tasks, and report what was done."""
    check(config)
    from rlhf_lightning.feedback.collection_run import run_collection

    rewards = rewards_of_pairs(config["reward"])
    print("\n".join(run_collection(config, _asking(config), _drawing(config), rewards, progress_bar)))
