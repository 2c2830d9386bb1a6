"""How a checkpoint reaches the disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from rlhf_lightning.durable import remove_with_manifest, save_with_manifest


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

    def remove_checkpoint(self, path: str | Path) -> None:
        if "://" in str(path) or Path(path).is_dir():
            super().remove_checkpoint(path)
        else:
            remove_with_manifest(Path(path))
