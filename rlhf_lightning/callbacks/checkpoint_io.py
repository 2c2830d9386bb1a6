"""Writing checkpoints to disk."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from rlhf_lightning.durable import (
    manifest_of,
    remove_with_manifest,
    save_with_manifest,
    what_is_broken,
    write_manifest,
)
from rlhf_lightning.errors import UserError, blaming, writing
from rlhf_lightning.file_hashes import LARGE
from rlhf_lightning.hashes import another_process_checks
from rlhf_lightning.run_identity import SaveCounter, read_started

_PARTS = ("state_dict", "pytorch-lightning_version")  # in every checkpoint, even one with weights only


class DurableCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint next to its target, syncs and renames it, and adds a manifest: size, hash, epoch and step.

    Lightning stages a checkpoint in the temporary folder and moves it without syncing: if it is killed while moving
    across file systems, both the new and the previous checkpoint are lost. Outside the commands, use it with
    `Trainer(plugins=[DurableCheckpointIO()])`. Sharded checkpoints (folders) are written by their strategy instead. The
    checkpoint and its manifest record the run they belong to and the order of saving (`rlhf_lightning.run_identity`).

    Args:
        run_dir: the run folder, named in the manifest of checkpoints stored elsewhere; default: none, and the run's id
            is read from where the checkpoint is saved.
    """

    def __init__(self, run_dir: str | Path | None = None) -> None:
        super().__init__()
        self.run_dir = None if run_dir is None else Path(run_dir)
        self._counter = SaveCounter()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
        origin = self._origin(target.parent)
        whole: dict[str, Any] = {**checkpoint, **{key: origin[key] for key in ("run_id", "saved") if key in origin}}
        facts = {key: checkpoint[key] for key in ("epoch", "global_step", "cannot_resume") if key in checkpoint}
        save_with_manifest(target, lambda file: torch.save(whole, file), **facts, **origin)

    def describe_folder(self, path: Path) -> None:
        """Write the manifest of a sharded checkpoint: which run it belongs to and when it was saved."""
        write_manifest(path, **self._origin(path.parent))

    def _origin(self, folder: Path) -> dict[str, Any]:
        """Return the run's id, its folder (absolute, and relative, which survives a copy), and the save number."""
        own = folder if self.run_dir is None else self.run_dir / "checkpoints"
        started = read_started(own)
        origin: dict[str, Any] = {"saved": self._counter.next(own, folder)}
        if started is not None and started.run_id:
            origin["run_id"] = started.run_id
        if self.run_dir is not None:
            origin["run"] = str(self.run_dir.resolve())
            origin["run_from_here"] = os.path.relpath(self.run_dir.resolve(), folder.resolve())
        return origin

    def load_checkpoint(self, path: Any, *args: Any, **options: Any) -> dict[str, Any]:
        """Return the content of a checkpoint.

        Raises:
            UserError: the file does not match its manifest, cannot be read, or is not a Lightning checkpoint.
        """
        _check_manifest(path)
        with blaming(f"ckpt: {path} is not a checkpoint that can be read", "take another one, or ckpt=last"):
            checkpoint = super().load_checkpoint(path, *args, **options)
        lacking = [key for key in _PARTS if not isinstance(checkpoint, Mapping) or key not in checkpoint]
        if lacking:
            raise UserError(
                f"ckpt: {path} is not a checkpoint of Lightning's (it has no {lacking[0]}); take another one, or "
                "ckpt=last"
            )
        return checkpoint

    def remove_checkpoint(self, path: str | Path) -> None:
        if "://" in str(path) or Path(path).is_dir():
            super().remove_checkpoint(path)
            if "://" not in str(path):
                manifest_of(Path(path)).unlink(missing_ok=True)
        else:
            remove_with_manifest(Path(path))


def _check_manifest(path: Any) -> None:
    file = Path(path)
    if not file.is_file() or not manifest_of(file).exists():
        return
    if not (file.stat().st_size >= LARGE and another_process_checks()) and (problem := what_is_broken(file)):
        raise UserError(f"ckpt: {path} is broken: {problem}; take another one, or ckpt=last")
