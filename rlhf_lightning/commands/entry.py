"""Entry points of the installed commands: signals are set up, and a training process restarts, before slow imports."""

from __future__ import annotations

import atexit
import gc
import importlib
import io
import sys

from rlhf_lightning.process.collectives import let_collectives_end
from rlhf_lightning.process.thread_caches import restart_without_thread_caches
from rlhf_lightning.runs.ranks import first_process, follows_the_first
from rlhf_lightning.stopping import answered


def train() -> None:
    """Run rlhf-train."""
    _start("train")


def pipeline() -> None:
    """Run rlhf-pipeline."""
    _start("pipeline")


def evaluate() -> None:
    """Run rlhf-evaluate."""
    _start("evaluate")


def export() -> None:
    """Run rlhf-export."""
    _start("export")


def track() -> None:
    """Run rlhf-track."""
    _start("track")


def plan() -> None:
    """Run rlhf-plan."""
    _start("plan")


def chat() -> None:
    """Run rlhf-chat."""
    _start("chat")


def agreement() -> None:
    """Run rlhf-agreement."""
    _start("agreement")


def collect() -> None:
    """Run rlhf-collect."""
    _start("collect")


def label() -> None:
    """Run rlhf-label."""
    _start("label")


def judge() -> None:
    """Run rlhf-judge."""
    _start("judge")


def rlhf() -> None:
    """Run rlhf, whose first word names a command: `rlhf train experiment=sft_demo`."""
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
    if isinstance(sys.stdout, io.TextIOWrapper):  # somebody may wait for a line in a file or a pipe: a link, an epoch
        sys.stdout.reconfigure(line_buffering=True)
    with answered(first_process(), follows_the_first(), for_good=True):
        if command in ("train", "pipeline"):
            restart_without_thread_caches(f"rlhf-{command}")
        atexit.register(_leave_configs)
        atexit.register(let_collectives_end)
        importlib.import_module(f"rlhf_lightning.commands.{command}").main()


def _leave_configs() -> None:
    """If only configs and sources were read, leave freeing them to the operating system, which is faster."""
    if "torch" not in sys.modules:
        gc.freeze()
