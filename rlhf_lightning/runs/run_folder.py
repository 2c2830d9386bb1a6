"""The run folder: its location, and its own files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from rlhf_lightning import run_identity
from rlhf_lightning.durable import entry_of, write_durably, write_text_durably
from rlhf_lightning.errors import UserError, blaming, writing
from rlhf_lightning.hashes import check_files, forget_hashes, write_hashes
from rlhf_lightning.run_identity import read_started
from rlhf_lightning.runs.config_file import config_text
from rlhf_lightning.runs.ranks import job, started_from_outside
from rlhf_lightning.secret_text import without_secrets

# Lightning starts further processes by running the command again: they must find the first one's folder and checkpoint.
_SHARED = "RLHF_LIGHTNING_RUN_DIR"
SHARED_CHECKPOINT = "RLHF_LIGHTNING_CHECKPOINT"
OUTPUTS = Path("outputs")
_READ_LATER = ("config.yaml", "summary.json", "metrics.jsonl", "samples.jsonl", "rounds.jsonl")


def choose_run_dir(config: Mapping[str, Any], checkpoint: Path | None = None) -> Path:
    """Return `run_dir`, or the folder of the run that `checkpoint` belongs to, or a new `outputs/<name>/<time>`.

    Raises:
        UserError: several processes would each choose a folder.
    """
    if config.get("run_dir"):
        return Path(config["run_dir"])
    if shared := os.environ.get(_SHARED):
        return Path(shared)
    folder = checkpoint and run_of_checkpoint(checkpoint)
    if folder is None:
        if ("trainer" in config or "stages" in config) and (started_from_outside() or _has_nodes(config)):
            raise UserError(
                "run_dir: missing; the processes of srun, torchrun or several nodes have to agree on the folder"
            )
        folder = _new_folder(OUTPUTS / str(config["name"]))
    os.environ[_SHARED] = str(folder)
    return folder


def _has_nodes(config: Mapping[str, Any]) -> bool:
    nodes = (config.get("trainer") or {}).get("num_nodes", 1)
    return isinstance(nodes, int) and nodes > 1


def chosen_run_dir() -> str | None:
    """Return the folder that was chosen for the run of this process, if it has not ended."""
    return os.environ.get(_SHARED)


def forget_run_dir() -> None:
    """Forget the folder after a run, so that the next one in this process (a sweep) gets its own."""
    os.environ.pop(_SHARED, None)
    os.environ.pop(SHARED_CHECKPOINT, None)


def _new_folder(parent: Path) -> Path:
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    names = [stamp, *(f"{stamp}_{i}" for i in range(1, 1000))]
    return next(parent / name for name in names if not (parent / name).exists())


def run_of_checkpoint(checkpoint: Path) -> Path | None:
    """Return the folder of the run that saved a checkpoint, where that run continues."""
    above = checkpoint.absolute().parents
    # Lightning's own checkpoint of a SLURM job is in the run folder itself; a callback's `dirpath` may be anywhere.
    entry = entry_of(checkpoint)
    named = [Path(os.path.normpath(above[0] / entry[key])) for key in ("run_from_here", "run") if key in entry]
    folders = [above[1], above[0], *(folder for folder in named if _may_be_of(entry, folder))]
    return next((folder for folder in folders if (folder / "config.yaml").is_file()), None)


def _may_be_of(entry: Mapping[str, Any], folder: Path) -> bool:
    """Return whether the run folder that a manifest names still belongs to the same run."""
    started = read_started(folder / "checkpoints")
    return started is None or not started.run_id or entry.get("run_id") in (None, started.run_id)


def begin_run(folder: Path) -> None:
    """Mark the start of a new run, whose `ckpt=last` must not find what an earlier run left in its folder."""
    run_identity.begin(folder / "checkpoints", job(), _beside(folder))


def resume_run(folder: Path, checkpoint: Path) -> None:
    """Mark that the run of a checkpoint continues in a folder, whatever other runs have left there."""
    run_identity.go_on(folder / "checkpoints", checkpoint, job(), _beside(folder))


def _beside(folder: Path) -> list[Path]:
    """Return the folders of the experiment's other runs, among which `ckpt=last` without `run_dir` chooses."""
    siblings = folder.resolve().parent
    return list(siblings.glob("*/checkpoints")) if siblings.parent == OUTPUTS.resolve() else []


def write_config(folder: Path, config: Mapping[str, Any], first: Callable[[], object] = lambda: None) -> None:
    """Write the composed config before anything else, and remove the summary of an earlier run.

    Args:
        folder: the run's folder.
        config: what is written.
        first: called when the config is on disk, before it takes its place: if it fails, the folder is still the
            earlier run's, and complete.
    """
    text = config_text(without_secrets(config))
    with writing(folder / "config.yaml"):
        folder.mkdir(parents=True, exist_ok=True)

    def forget_former_end(_: object) -> None:
        first()
        forget_hashes(folder)
        (folder / "summary.json").unlink(missing_ok=True)

    write_durably(folder / "config.yaml", lambda file: file.write(text.encode()), forget_former_end)
    write_hashes(folder, ("config.yaml",))


def forget_end(folder: Path) -> None:
    """Treat a run that has ended in a folder, and its checkpoints, as left there by another run."""
    if (folder / "config.yaml").is_file():
        forget_hashes(folder)
        (folder / "summary.json").unlink(missing_ok=True)
        if (folder / "checkpoints").is_dir():
            begin_run(folder)


def write_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    """Write summary.json, one flat object, and the hashes of the files that others read of a finished run."""
    forget_hashes(folder)
    write_text_durably(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
    write_hashes(folder, _READ_LATER)


def read_summary(folder: Path) -> dict[str, Any]:
    """Return the content of summary.json; empty if the run has not ended.

    Raises:
        UserError: it, or the config.yaml next to it, differs from what the run wrote.
    """
    check_files(folder, ("config.yaml", "summary.json"))
    file = folder / "summary.json"
    with blaming(f"{file} cannot be read"):
        content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if not isinstance(content, dict):
            raise ValueError("it is not a JSON object")
    return content


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's JSONL file; none if there is no such file.

    Its lines end at line feeds. `str.splitlines` would also split at other separators, which JSON may contain
    unescaped.

    Raises:
        UserError: it differs from what the run wrote.
    """
    if not path.is_file():
        return []
    check_files(path.parent, (path.name,))
    with blaming(f"{path} cannot be read"), path.open(encoding="utf-8") as lines:
        return [_row(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]


def _row(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(f"{path}, line {number}: not JSON: {getattr(error, 'msg', error)}") from error
    if not isinstance(row, dict):
        raise UserError(f"{path}, line {number}: found {type(row).__name__}; must be a JSON object")
    return row


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's metrics.jsonl.

    Raises:
        UserError: it differs from what the run wrote, or a row's step or one of its values is not a number.
    """
    rows = read_json_lines(path)
    for number, row in enumerate(rows, 1):
        for name, value in row.items():
            whole = name != "step" or (isinstance(value, int) and value >= 0)
            if isinstance(value, bool) or not isinstance(value, int | float | None) or not whole:
                must = "a whole number >= 0" if name == "step" else "a number"
                raise UserError(f"{path}, line {number}: {name}: found {json.dumps(value)}; must be {must}")
    return rows
