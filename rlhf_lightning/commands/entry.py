"""Where the installed commands begin: signals are answered before anything that takes time is imported."""

from __future__ import annotations

import importlib

from rlhf_lightning.runs.ranks import first_process, follows_the_first
from rlhf_lightning.stopping import answered


def train() -> None:
    """rlhf-train."""
    _start("train")


def pipeline() -> None:
    """rlhf-pipeline."""
    _start("pipeline")


def evaluate() -> None:
    """rlhf-evaluate."""
    _start("evaluate")


def export() -> None:
    """rlhf-export."""
    _start("export")


def track() -> None:
    """rlhf-track."""
    _start("track")


def plan() -> None:
    """rlhf-plan."""
    _start("plan")


def chat() -> None:
    """rlhf-chat."""
    _start("chat")


def _start(command: str) -> None:
    with answered(first_process(), follows_the_first(), for_good=True):
        importlib.import_module(f"rlhf_lightning.commands.{command}").main()
