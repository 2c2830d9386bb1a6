"""One bad input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


def nothing(folder: Path) -> None:
    """Prepare nothing."""


@dataclass(frozen=True)
class Case:
    """A bad input.

    Args:
        name: name of the case.
        command: `train`, `pipeline`, `plan`, `evaluate`, `export`, `chat`, `collect` or `label`.
        words: the command line.
        names: a regular expression for what the line must name.
        prepare: changes the fixtures in the given folder, which is the working folder.
        code: the exit code.
        further_lines: lines on standard error besides the one that says what is wrong, such as a warning.
        fast: whether the default tests run it.
    """

    name: str
    command: str
    words: list[str]
    names: str
    prepare: Callable[[Path], object] = field(default=nothing)
    code: int = 2
    further_lines: int = 0
    fast: bool = False


TINY = ["logger=none", "trainer.accelerator=cpu", "callbacks.instruments=null", "callbacks.progress=null"]
SFT = [
    "experiment=sft",
    "model.path=model",
    "data.train=rows.jsonl",
    "data.val_fraction=0",
    "scheduler=constant",
    *TINY,
]
REWARD = [
    "experiment=reward",
    "model.path=model",
    "data.train=pairs.jsonl",
    "data.val_fraction=0",
    "scheduler=constant",
    *TINY,
]
DPO = [
    "experiment=dpo",
    "model.path=model",
    "data.train=pairs.jsonl",
    "data.val_fraction=0",
    "scheduler=constant",
    *TINY,
]
PPO = [
    *("experiment=ppo", "model.path=model", "data.train=prompts.jsonl", "reward.function=mine.score"),
    *("rollout.batch_size=4", "rollout.max_new_tokens=4", "algorithm.num_minibatches=1", "algorithm.ppo_epochs=1"),
    *("trainer.max_epochs=1", *TINY),
]
EVALUATE = ["policies={a: model, b: run}", "baseline=a", "prompts=prompts.jsonl", "max_new_tokens=4"]


def changed(words: list[str], *others: str) -> list[str]:
    """Return the words, with others replacing those that set the same key."""
    keys = {other.partition("=")[0].lstrip("+~") for other in others}
    return [*(word for word in words if word.partition("=")[0] not in keys), *others]


def writes(name: str, content: str | bytes) -> Callable[[Path], object]:
    """Return an action that writes a file."""

    def write(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    return write


def becomes_folder(name: str) -> Callable[[Path], object]:
    """Return an action that replaces a file with a folder."""

    def replace(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return replace
