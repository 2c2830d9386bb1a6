"""What to do with a finished run: commands that work as printed, in the folder that the run was started from."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_lightning.environment import typed
from rlhf_lightning.runs.quoting import quoted, shell_words
from rlhf_lightning.runs.resuming import depends_on_length
from rlhf_lightning.runs.run import Run, read_run

_COLUMN = len("train with it:")
_REPLACED = ("ckpt", "run_dir", "trainer.max_epochs", "resume_anyway")


def next_steps(run: Run, words: Sequence[str]) -> list[str]:
    """Return lines saying what can be done with a training run that has ended.

    Args:
        run: with its folder and its model.
        words: of the command that has trained it; empty for a run that cannot be repeated that way, as in a sweep.
    """
    steps = _of_reward_model(run) if run.is_reward_model else _of_policy(run)
    return _aligned([*steps, *_longer(run, words)])


def next_steps_of_pipeline(folders: Sequence[Path]) -> list[str]:
    """Return the same as `next_steps` for a pipeline: about the last policy in the folders of its stages."""
    runs = [run for folder in folders if (run := read_run(folder)) is not None and not run.is_reward_model]
    if not runs:
        return []
    last, first = runs[-1], runs[0]
    chat = {"model": last.folder, **({"compare_with": first.folder} if first.folder != last.folder else {})}
    return _aligned([("chat", f"{typed('rlhf-chat')} {shell_words(chat)}"), _export(last)])


def _of_policy(run: Run) -> Iterator[tuple[str, str]]:
    yield "chat", f"{typed('rlhf-chat')} {shell_words({'model': run.folder})}"
    if prompts := _rows(run.config):
        policies = {"before": run.begins_from, "after": str(run.folder)}
        if not _is_model(run.begins_from):
            del policies["before"]
        inside = ",".join(f"{name}:{quoted(path)}" for name, path in policies.items())
        given = {"baseline": next(iter(policies)), "prompts": prompts}
        yield "evaluate", f"{typed('rlhf-evaluate')} {shlex.quote(f'policies={{{inside}}}')} {shell_words(given)}"
    yield _export(run)


def _of_reward_model(run: Run) -> Iterator[tuple[str, str]]:
    if run.declaration.roles[0] == "cost":
        yield _export(run)
        return
    if rows := _rows(run.config):
        if not run.scores_steps:
            rewards = f"rewards={{{quoted(run.name)}:{{model:{quoted(str(run.folder))}}}}}"
            yield "evaluate", f"{typed('rlhf-evaluate')} {shlex.quote(rewards)} {shell_words({'preferences': rows})}"
        if _is_model(run.begins_from):
            given = {"model.path": run.begins_from, "reward.model": run.folder, "data.train": rows}
            yield "train with it", f"{typed('rlhf-train')} experiment=grpo {shell_words(given)}"
    yield _export(run)


def _export(run: Run) -> tuple[str, str]:
    given = {"run": run.folder, "to": f"exported/{run.folder.name}"}
    return "export", f"{typed('rlhf-export')} {shell_words(given)}"


def _longer(run: Run, words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the same command for twice as many epochs, if that does not change the steps already taken."""
    trainer = run.config.get("trainer") or {}
    epochs, limits = trainer.get("max_epochs"), [trainer.get("max_steps", -1), trainer.get("max_time")]
    saved = (run.folder / "checkpoints" / "last.ckpt").exists()
    if not words or not saved or not isinstance(epochs, int) or epochs < 1 or limits != [-1, None]:
        return
    if depends_on_length(run.config):
        return
    kept = [word for word in words if word.lstrip("+~").partition("=")[0] not in _REPLACED]
    more = {"ckpt": "last", "run_dir": run.folder}
    line = f"{shlex.join(kept)} {shell_words(more)} trainer.max_epochs={2 * epochs}"
    yield "train longer", f"{typed('rlhf-train')} {line}"


def _rows(config: Mapping[str, Any]) -> str | None:
    """Return the file of a run's rows, held-out ones first, if they have prompts."""
    data = config.get("data") or {}
    for path in (data.get("val"), data.get("train")):
        if isinstance(path, str) and path.endswith(".jsonl") and Path(path).is_file():
            row = _first_row(path)
            if "prompt" in row or {"chosen", "rejected"} <= set(row):
                return path
    return None


def _first_row(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8-sig") as lines:
            row = json.loads(next((line for line in lines if line.strip()), "{}"))
    except (OSError, ValueError):
        return {}
    return row if isinstance(row, dict) else {}


def _is_model(path: str) -> bool:
    """Return whether something that a run began from can be loaded with its weights: not a configuration alone."""
    folder = Path(path)
    files = [*folder.glob("*.safetensors"), *folder.glob("*.bin"), *folder.glob("model/*.safetensors")]
    return bool(files) or not folder.exists()  # a hub name


def curves(command: str) -> str:
    """Return the line about a run's curves."""
    return _aligned([("curves", command)])[0]


def _aligned(steps: Sequence[tuple[str, str]]) -> list[str]:
    return [f"  {name + ':':<{_COLUMN}}  {line}" for name, line in steps]
