"""The note of a run in its store (MLflow shows it as its description): what it is, its first figures, its command."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from rlhf_lightning.outside_text import as_code, for_markdown
from rlhf_lightning.runs.command_words import GivenCommand
from rlhf_lightning.runs.run import Run
from rlhf_lightning.secret_text import shown

NOTE = "mlflow.note.content"
_OURS = "rlhf_lightning.note"  # the tag with the note that was written here: another one is its reader's
_LONGEST = 7000  # characters of a tag
_OF_POLICIES = {"gold_mean": "gold", "proxy_mean": "proxy", "kl": "KL", "length": "length"}
_FIGURES = 8
_COMMAND = re.compile(r"```bash\n.*?\n```", re.DOTALL)


def run_note(run: Run, command: GivenCommand) -> str:
    """Return the note of a training run, as Markdown; before its end it has no figures."""
    title = for_markdown(run.declaration.title or run.algorithm)
    parts = [f"**{title}** from {as_code(run.begins_from)}{_rewarded(run)}, seed {run.config.get('seed')}"]
    parts += [_table(("figure", "at the end"), _first(run.summary))] if run.summary else []
    return _written([*parts, *_how(run, command)])


def pipeline_note(run: Run, command: GivenCommand, summary: Mapping[str, Any]) -> str:
    """Return the note of a pipeline, with a line per policy that was compared."""
    stages = ", ".join(as_code(name) for name in run.config.get("stages") or {})
    parts = [f"**Pipeline** of {stages}, seed {run.config.get('seed')}"]
    if rows := _policies(summary):
        parts.append(_table(rows[0], rows[1:]))
    return _written([*parts, *_how(run, command)])


def put_note(client: Any, run_id: str, note: str) -> None:
    """Set the note of a run, unless somebody has written another one. The command in a previous one is kept."""
    tags = client.get_run(run_id).data.tags
    if tags.get(NOTE) in (None, "", tags.get(_OURS)):
        command = _COMMAND.search(tags.get(_OURS) or "")
        note = note if command is None or _COMMAND.search(note) else f"{note}\n\n{command[0]}"
        client.set_tag(run_id, _OURS, note)
        client.set_tag(run_id, NOTE, note)


def _rewarded(run: Run) -> str:
    reward = run.config.get("reward") or {}
    if models := reward.get("models"):
        return (
            f", rewarded by the {reward.get('combine', 'mean')} of {', '.join(as_code(str(each)) for each in models)}"
        )
    source = reward.get("model") or reward.get("function")
    return f", rewarded by {as_code(str(source))}" if source else ""


def _how(run: Run, command: GivenCommand) -> list[str]:
    parts = [f"Run folder: {as_code(str(run.folder))}"]
    return [f"```bash\n{shown(command.line())}\n```", *parts] if command.name else parts


def _first(summary: Mapping[str, Any]) -> list[tuple[str, ...]]:
    from rlhf_lightning.callbacks.first_figures import FIRST

    known = [name for name in FIRST if isinstance(summary.get(name), int | float)][:_FIGURES]
    rows: list[tuple[str, ...]] = [(as_code(name), _figure(summary[name])) for name in known]
    seconds = summary.get("wall_seconds")
    return rows + ([("time", f"{seconds / 60:.1f} min")] if isinstance(seconds, int | float) else [])


def _policies(summary: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return a head and a row for each policy of an evaluation; nothing without one."""
    policies = [name.partition(".")[0] for name in summary if name.endswith(".length")]
    wins = sorted({name.partition(".")[2] for name in summary if "win_rate_vs_" in name and not _is_end(name)})
    keys = {
        **{key: words for key, words in _OF_POLICIES.items() if any(f"{name}.{key}" in summary for name in policies)},
        **{key: key.replace("_win_rate_vs_", " wins against ") for key in wins},
    }
    rows = [
        (as_code(name), *(_figure(summary.get(f"{name}.{key}"), percent=key in wins) for key in keys))
        for name in policies
    ]
    return [("policy", *keys.values()), *rows] if rows else []


def _is_end(name: str) -> bool:
    return name.endswith(("_low", "_high"))


def _figure(value: Any, percent: bool = False) -> str:
    if not isinstance(value, int | float):
        return "–"
    return f"{value:.0%}" if percent else f"{value:.4g}"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)


def _written(parts: list[str]) -> str:
    return shown("\n\n".join(part for part in parts if part))[:_LONGEST]
