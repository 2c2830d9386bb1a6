"""How a checkpoint reaches the disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from rlhf_lightning.durable import remove_with_manifest, save_with_manifest
from rlhf_lightning.errors import UserError, blaming

_PARTS = ("state_dict", "pytorch-lightning_version")  # of every checkpoint, one of the weights alone included


class DurableCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its target, syncs and renames it, with a manifest of its size, hash, epoch and step.

    Lightning stages it in the temporary folder and moves it without a sync: killed while it moves across file systems,
    both the new and the former checkpoint are gone. A `Trainer(plugins=[DurableCheckpointIO()])` has it outside the
    commands, too. Sharded checkpoints (folders) are written by their strategy and not through this.

    Args:
        run_dir: the run folder, named in the manifest, for checkpoints that lie elsewhere.
    """

    def __init__(self, run_dir: str | Path | None = None) -> None:
        super().__init__()
        self.run_dir = run_dir

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        facts: dict[str, Any] = {
            key: checkpoint[key] for key in ("epoch", "global_step", "cannot_resume") if key in checkpoint
        }
        if self.run_dir is not None:
            facts["run"] = str(Path(self.run_dir).resolve())
        save_with_manifest(target, lambda file: torch.save(checkpoint, file), **facts)

    def load_checkpoint(self, path: Any, *args: Any, **options: Any) -> dict[str, Any]:
        """The content of a checkpoint.

        Raises:
            UserError: the file cannot be read, or is not a checkpoint of Lightning's.
        """
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
        else:
            remove_with_manifest(Path(path))
