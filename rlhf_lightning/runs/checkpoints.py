"""Which checkpoint a run resumes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rlhf_lightning.durable import manifest_of, what_is_broken, why_not_resumed
from rlhf_lightning.errors import UserError
from rlhf_lightning.run_identity import identity_of, is_of_earlier_run, is_saved_since, newness, read_started
from rlhf_lightning.runs.ranks import first_process, job, queued_again, under_srun
from rlhf_lightning.runs.run_folder import OUTPUTS, SHARED_CHECKPOINT, run_of_checkpoint


def find_checkpoint(config: Mapping[str, Any]) -> Path | None:
    """Return the checkpoint named by `ckpt`; `last` is the newest complete one of `run_dir` or else `outputs/<name>`.

    Broken checkpoints are skipped with a line on stderr: their size or hash differs from the manifest, or, without a
    manifest, they do not look complete. So are those that an earlier run left in the folder.

    Raises:
        UserError: there is none, or the named one is broken.
    """
    chosen = config.get("ckpt") or ("last" if _was_interrupted(config) else None)
    if not chosen:
        return None
    if not first_process() and (shared := os.environ.get(SHARED_CHECKPOINT)):
        return Path(shared)
    checkpoint = _newest_complete(config) if chosen == "last" else _named(Path(chosen))
    os.environ[SHARED_CHECKPOINT] = str(checkpoint)
    return checkpoint


def _was_interrupted(config: Mapping[str, Any]) -> bool:
    """Return whether this SLURM job was requeued after it had saved a checkpoint in this very run."""
    folder = Path(config["run_dir"]) if config.get("run_dir") else None
    return folder is not None and queued_again() and saved_by_this_job(folder)


def saved_by_this_job(folder: Path) -> bool:
    """Return whether this very cluster job began or resumed the run in a folder, and has saved a checkpoint of it."""
    started = read_started(folder / "checkpoints")
    if started is None or not job() or started.job != job():
        return False
    return any(is_saved_since(path, folder / "checkpoints") for path in _of_the_run(folder))


def refuse_foreign_resume(folder: Path) -> None:
    """Raise UserError if Lightning would resume, unasked, what it saved for another SLURM job in this folder."""
    for file in sorted(folder.glob("*hpc_ckpt_*")) if under_srun() else ():
        raise UserError(
            f"run_dir: {file} is a checkpoint that Lightning has saved for a SLURM job, and would resume unasked; "
            f"resume it with ckpt={file}, or remove it"
        )


def _named(path: Path) -> Path:
    if not path.exists():
        raise UserError(f"ckpt: {path} does not exist; give the path of a checkpoint, or last")
    if not path.is_file() and not path.is_dir():
        raise UserError(f"ckpt: {path} is neither a file nor a folder; give the path of a checkpoint, or last")
    inside = [*path.glob("*.ckpt"), *path.glob("checkpoints/*.ckpt")] if what_is_broken(path) else []
    if inside:
        newest = max(inside, key=newness)
        raise UserError(f"ckpt: {path} is a folder with checkpoints in it; give one of them, such as ckpt={newest}")
    # Another tool's file has no manifest: whether it can be read shows when it is loaded.
    if (manifest_of(path).exists() or path.is_dir()) and (problem := what_is_broken(path)):
        raise UserError(f"ckpt: {path} is broken: {problem}; take another one, or ckpt=last")
    if reason := why_not_resumed(path):
        raise UserError(f"ckpt: {path}: {reason}; take another one, or ckpt=last")
    return path


def _newest_complete(config: Mapping[str, Any]) -> Path:
    run_dir = config.get("run_dir")
    root = Path(run_dir) if run_dir else OUTPUTS / str(config["name"])
    found = [*root.glob("checkpoints/*.ckpt" if run_dir else "*/checkpoints/*.ckpt"), *_elsewhere(config)]
    for path in sorted(found, key=newness, reverse=True):
        problem = _of_earlier_run(path) or what_is_broken(path) or why_not_resumed(path)
        if problem is None:
            return path
        if first_process():
            sys.stderr.write(f"ckpt: {path} is skipped: {problem}\n")
    raise UserError(f"ckpt: no whole checkpoint in {root}; start without ckpt=last, or name the run with run_dir=...")


def _elsewhere(config: Mapping[str, Any]) -> Iterator[Path]:
    """Yield the run's checkpoints in a callback's `dirpath`, which other runs may share."""
    sections = [section for section in (config.get("callbacks") or {}).values() if isinstance(section, Mapping)]
    folders = {str(section["dirpath"]) for section in sections if section.get("dirpath")}
    own = Path(config["run_dir"]).resolve() if config.get("run_dir") else (OUTPUTS / str(config["name"])).resolve()
    runs = [own] if config.get("run_dir") else list(own.glob("*"))
    ids = {started.run_id for run in runs if (started := read_started(run / "checkpoints")) and started.run_id}
    for path in (path for folder in sorted(folders) for path in Path(folder).glob("*.ckpt")):
        run_id, run = identity_of(path).get("run_id"), run_of_checkpoint(path)
        by_place = run is not None and own in (run.resolve(), run.resolve().parent)
        if run_id in ids if run_id and ids else by_place:
            yield path


def _of_earlier_run(path: Path) -> str | None:
    earlier = is_of_earlier_run(path, path.parent)
    return "it belongs to an earlier run in this folder" if earlier else None


def has_checkpoint(folder: Path) -> bool:
    """Return whether the run in a folder has saved a checkpoint to resume from."""
    return any(True for _ in _of_the_run(folder))


def _of_the_run(folder: Path) -> Iterator[Path]:
    for path in folder.glob("checkpoints/*.ckpt"):
        if _of_earlier_run(path) is None and why_not_resumed(path) is None:
            yield path
