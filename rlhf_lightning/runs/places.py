"""Where a run may write: not over a model, nor over what another command, or another run, has written."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from rlhf_lightning.errors import UserError
from rlhf_lightning.runs.folder_lock import check_run_dir

# What writes a config.yaml, with keys by which it is known.
_WRITERS = {
    "rlhf-train": {"model", "algorithm"},
    "rlhf-pipeline": {"stages"},
    "rlhf-evaluate": {"policies", "baseline"},
    "rlhf-agreement": {"labelers", "draws"},
    "rlhf-judge": {"judge", "labeler"},
    "a pipeline's stage that calls a function": {"call"},
}
_OF_A_MODEL = ("config.json", "adapter_config.json")


def check_place(folder: Path, config: Mapping[str, Any]) -> None:
    """Check that a run with this config may write in a folder; the folder stays unchanged.

    Raises:
        UserError: it cannot be written to, holds a model or what another command has written, or belongs to another
            run; or a callback would write in another run's folder.
    """
    check_run_dir(folder)
    own = writer_of(config)
    if (folder / "config.yaml").exists():
        former = _config_in(folder)
        found = writer_of(former)
        if found is None and former:
            raise UserError(
                f"run_dir: {folder / 'config.yaml'} is not a run's, and would be replaced; choose another folder"
            )
        if found not in (None, own):
            raise UserError(f"run_dir: {folder} is a folder of {found}, which would be replaced; choose another one")
    elif any((folder / name).is_file() for name in _OF_A_MODEL):
        raise UserError(f"run_dir: {folder} holds a model; choose another folder")
    elif own == "rlhf-train" and (folder / "model").exists():
        raise UserError(
            f"run_dir: {folder / 'model'} was not written by a run there, and would be replaced; choose another folder"
        )
    for place in _above(folder):
        if place.name in ("checkpoints", "model") and _writer_in(place.parent) == "rlhf-train":
            raise UserError(f"run_dir: {folder} is in the run folder {place.parent}; choose another folder")
    for key, path in _of_callbacks(config):
        other = next((place for place in _above(path) if _writer_in(place)), None)
        if other is not None and other not in _above(folder):
            raise UserError(f"{key}: {path} is in the folder of another run, {other}; choose another folder")


def writer_of(config: Mapping[str, Any]) -> str | None:
    """Return the command that has this config, or what else writes a config.yaml; None for another program's."""
    return next((name for name, keys in _WRITERS.items() if keys <= set(config)), None)


def _writer_in(folder: Path) -> str | None:
    """Return what has written the config.yaml of a folder; None without one, or for another program's."""
    return writer_of(_config_in(folder)) if (folder / "config.yaml").is_file() else None


def _config_in(folder: Path) -> Mapping[str, Any]:
    """Return the config.yaml of a folder; empty if it is damaged: such a run can only be started again."""
    try:
        found = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return found if isinstance(found, Mapping) else {}


def _above(path: Path) -> Iterator[Path]:
    """Yield a folder and those above it."""
    whole = Path(os.path.realpath(path.expanduser()))
    yield from (whole, *whole.parents)


def _of_callbacks(config: Mapping[str, Any]) -> Iterator[tuple[str, Path]]:
    """Yield key and path of every folder and file that a callback writes, where the config names it."""
    for name, section in (config.get("callbacks") or {}).items():
        for key in ("dirpath", "path") if isinstance(section, Mapping) else ():
            if isinstance(section.get(key), str | os.PathLike) and "://" not in str(section[key]):
                yield f"callbacks.{name}.{key}", Path(section[key])
