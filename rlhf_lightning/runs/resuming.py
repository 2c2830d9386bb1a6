"""Check that a run may resume with another config than the one it began with."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rlhf_lightning.errors import UserError
from rlhf_lightning.hashes import check_files
from rlhf_lightning.runs.config_file import read_config
from rlhf_lightning.runs.ranks import first_process
from rlhf_lightning.runs.run_folder import run_of_checkpoint
from rlhf_lightning.secret_text import without_secrets

# What may change: a run with another value still means the same, or reports itself what is new (a learning rate).
_HARMLESS = {
    *("name", "run_dir", "ckpt", "resume_anyway", "explain", "requires", "logger", "optimizer.lr"),
    *("data.val_batch_size", "reward.batch_size", "reward.timeout", "algorithm.tokens_per_microbatch"),
    *("cost.batch_size", "cost.timeout"),
    *(f"rollout.{key}" for key in ("server", "sleep", "sync_dir", "timeout")),
    *(f"trainer.{key}" for key in ("max_epochs", "max_steps", "max_time", "min_epochs", "min_steps")),
    *(f"trainer.{key}" for key in ("log_every_n_steps", "val_check_interval", "check_val_every_n_epoch")),
    *(f"trainer.{key}" for key in ("limit_val_batches", "num_sanity_val_steps", "inference_mode", "profiler")),
    *(f"trainer.{key}" for key in ("detect_anomaly", "enable_progress_bar")),
}
# Callbacks that only watch and save. Any other one may act on the weights, as an average does.
_WATCHERS = ("Checkpoint", "MetricsFile", "Guardrails", "Instruments", "ProgressBar", "SampleTable", "StopOnSigterm")
# Keys that runs of earlier versions lack, with what those runs did.
_BEFORE = {"matmul_precision": "highest"}
_LENGTH = ("trainer.max_epochs", "trainer.max_steps", "trainer.max_time")


def check_same_run(config: Mapping[str, Any], checkpoint: Path) -> None:
    """Print the differences from the config of the checkpoint's run, and refuse those that would change its meaning.

    Raises:
        UserError: such a difference, unless `resume_anyway` is set, or a config.yaml that the run did not write.
    """
    folder = run_of_checkpoint(checkpoint)
    if folder is None:
        return
    check_files(folder, ("config.yaml",), key="ckpt")
    former: Any = {**_BEFORE, **read_config(folder / "config.yaml")}
    changes = {
        key: (old, new)
        for key, old, new in differences(without_secrets(former), without_secrets(config))
        if key not in _SILENT and not _moved_along(old, new, former, config)
    }
    refused = [key for key in changes if changes_meaning(key, former, config)]
    if first_process():
        for key, (old, new) in changes.items():
            sys.stderr.write(f"resume: {key}: {_shown(old)} -> {_shown(new)}\n")
    if refused and not config.get("resume_anyway"):
        raise UserError(
            f"{', '.join(refused)}: changed since the run began, which would make it another run; start a new one "
            "(another run_dir, without ckpt), use the previous values, or set resume_anyway=true"
        )


def changed_since(folder: Path, config: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield key, previous and present value of what would change the result of a run that ended in a folder."""
    former: Any = {**_BEFORE, **read_config(folder / "config.yaml")}
    harmless = _HARMLESS - {"optimizer.lr", *(key for key in _HARMLESS if key.startswith("trainer.m"))}
    for key, old, new in differences(without_secrets(former), without_secrets({**_BEFORE, **config})):
        parts = key.split(".")
        known = any(".".join(parts[: i + 1]) in harmless for i in range(len(parts)))
        if not known and not _moved_along(old, new, former, config):
            yield key, _shown(old), _shown(new)


def _moved_along(old: Any, new: Any, former: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Return whether both are the same file in or next to the run folder, which was moved or copied with it."""
    if not (isinstance(old, str) and isinstance(new, str) and former.get("run_dir") and config.get("run_dir")):
        return False
    old, new = (each.removeprefix("sqlite:///") for each in (old, new))
    was, now = (os.path.abspath(os.path.dirname(os.path.abspath(each["run_dir"]))) for each in (former, config))
    place = os.path.relpath(os.path.abspath(old), was)
    return was != now and not place.startswith(os.pardir) and place == os.path.relpath(os.path.abspath(new), now)


_SILENT = {"ckpt", "resume_anyway", "explain"}


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield dotted key, old and new value of every difference; a section that only one has is one difference.

    >>> list(differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}, "d": None}))
    [('a.c', 2, 3)]
    """
    for name in dict.fromkeys([*old, *new]):
        key, before, after = f"{prefix}{name}", old.get(name), new.get(name)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from differences(before, after, f"{key}.")
        elif before != after:
            yield key, before, after


def changes_meaning(key: str, former: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Return whether a run with another value of `key` is another run."""
    parts = key.split(".")
    if parts[0] == "callbacks" and len(parts) > 1:
        sections = [(each.get("callbacks") or {}).get(parts[1]) for each in (former, config)]
        targets = [str(section.get("_target_", "")) for section in sections if section]
        return not all(target.endswith(_WATCHERS) for target in targets)
    if key in _LENGTH:
        return depends_on_length(config)
    return not any(".".join(parts[: i + 1]) in _HARMLESS for i in range(len(parts)))


def depends_on_length(config: Mapping[str, Any]) -> bool:
    """Return whether the learning rate of every step depends on the total number of steps."""
    target = str((config.get("scheduler") or {}).get("_target_", "constant"))
    return "constant" not in target


def _shown(value: Any) -> str:
    """Return a value on one line, as on the command line."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
