"""Names and files of lm-eval's tasks; needs neither torch nor lm-eval."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from rlhf_lightning.errors import UserError, blaming


def check_tasks(tasks: Sequence[str]) -> None:
    """Raise UserError without lm-eval, and for files of tasks that are missing or name no task."""
    if not tasks:
        raise UserError("harness: found no task; give harness=[name or file.yaml, ...], or leave it out")
    for task in tasks:
        task_of(task)
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("harness: lm-eval is not installed; pip install 'rlhf-lightning[harness]', or leave it out")


def task_of(task: str) -> str | None:
    """Return the name of the task in a YAML file; None for a plain name.

    Raises:
        UserError: there is no such file, or it names no task.
    """
    if not task.endswith((".yaml", ".yml")):
        return None
    file = Path(task)
    if not file.is_file():
        raise UserError(f"harness: {task} does not exist")
    with blaming(f"harness: {task} cannot be read"):
        content: Any = yaml.load(file.read_text(encoding="utf-8"), _Loader)
    name = content.get("task") if isinstance(content, dict) else None
    if not isinstance(name, str):
        raise UserError(f"harness: {task} names no task; it needs a line `task: <name>`")
    return name


def named_tasks(tasks: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the names of tasks, and the folders with the files of those that are not lm-eval's own."""
    files = [task for task in tasks if task_of(task) is not None]
    return [task_of(task) or task for task in tasks], sorted({str(Path(file).parent) for file in files})


class _Loader(yaml.SafeLoader):
    """Reads a task's file without the functions that `!function` names."""


_Loader.add_multi_constructor("!", lambda loader, suffix, node: None)
