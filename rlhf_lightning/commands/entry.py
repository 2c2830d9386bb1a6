"""Where the installed commands begin: signals are answered, and a process that trains starts over, before anything that
takes time is imported."""

from __future__ import annotations

import atexit
import gc
import importlib
import sys

from rlhf_lightning.process.thread_caches import restart_without_thread_caches
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


def agreement() -> None:
    """rlhf-agreement."""
    _start("agreement")


def collect() -> None:
    """rlhf-collect."""
    _start("collect")


def label() -> None:
    """rlhf-label."""
    _start("label")


def judge() -> None:
    """rlhf-judge."""
    _start("judge")


def rlhf() -> None:
    """rlhf, whose first word is a command: `rlhf train experiment=sft_demo`."""
    if sys.argv[1:2] and sys.argv[1] in ("--complete", "--list", "--install-completion"):
        _start("train")  # which answers them for all
        return
    from rlhf_lightning.commands.command_line import run_command
    from rlhf_lightning.guide.pages import command_page, named_command

    named: list[str | None] = []
    run_command(lambda: named.append(named_command(sys.argv[1:2])))
    if named[0] is None:
        print(command_page())
        return
    sys.argv[:2] = [f"rlhf-{named[0]}"]
    _start(named[0])


def _start(command: str) -> None:
    with answered(first_process(), follows_the_first(), for_good=True):
        if command in ("train", "pipeline"):
            restart_without_thread_caches(f"rlhf-{command}")
        atexit.register(_leave_configs)
        importlib.import_module(f"rlhf_lightning.commands.{command}").main()


def _leave_configs() -> None:
    """Where only configs and sources were read, leave them to the operating system, which is faster."""
    if "torch" not in sys.modules:
        gc.freeze()
