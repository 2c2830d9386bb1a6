"""rlhf-label: the labelling page, served until Ctrl-C."""

from __future__ import annotations

from typing import Any

from rlhf_lightning.commands.command_line import run_hydra_command
from rlhf_lightning.config.feedback_checks import check_label, check_store
from rlhf_lightning.stopping import advising


def main() -> None:
    """Run rlhf-label."""
    run_hydra_command("rlhf-label", "label", label)


def label(config: dict[str, Any]) -> None:
    """Print the links and serve the page."""
    check_label(config)
    from rlhf_lightning.feedback.pages.serving import Serving, read_guidelines, serve
    from rlhf_lightning.feedback.store import FeedbackStore

    guidelines = None if config["guidelines"] is None else read_guidelines(config["guidelines"])
    check_store(config["feedback"]["store"])
    settings = {name: config[name] for name in ("labelers", "renew", "criteria", "flags", "host", "port", "url")}
    times = {name: config[name] for name in ("returns_after", "repeat_gap")}
    with (
        advising(lambda: "every answer that was acknowledged is saved; the same command continues"),
        FeedbackStore(config["feedback"]["store"], **times) as store,
    ):
        serve(store, Serving(guidelines=guidelines, **settings), print)
