"""The reference's log-probabilities, computed once and stored in a file that is only read for the same inputs."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf_lightning.data import PreferenceBatch
from rlhf_lightning.durable import write_durably

log = logging.getLogger(__name__)

Table = dict[int, float]  # id of the answer -> its log-probability, nats
FILE = "reference_logprobs.pt"


def reference_table(
    module: Any, batches: Sequence[PreferenceBatch], logps: Callable[[PreferenceBatch], Tensor], fingerprint: str
) -> Table:
    """Return log pi_ref of every answer of the batches; the table is stored in the run's folder.

    Args:
        module: the LightningModule that trains.
        batches: every answer once.
        logps: batch -> [N], log-probabilities of its answers under the reference.
        fingerprint: hash of the reference.
    """
    path = Path(module.trainer.default_root_dir) / FILE
    tokens = hashlib.sha256(b"".join(x.numpy().tobytes() for b in batches for x in (b.row_ids, b.input_ids)))
    key = fingerprint + tokens.hexdigest() + f" {module.precision}"
    first = module.trainer.is_global_zero
    table = _saved(path, key, warn=first)
    if not table:
        with module.trainer.precision_plugin.forward_context():
            for batch in batches:
                table.update(zip(batch.row_ids.tolist(), logps(batch.to(module.device)).tolist(), strict=True))
        if first:
            path.parent.mkdir(parents=True, exist_ok=True)
            kept = {"key": key, "table": table}
            write_durably(path, lambda file: torch.save({**kept, "sha256": _digest(kept)}, file))
    return table


def _saved(path: Path, key: str, warn: bool) -> Table:
    """Return the table of a file computed for this key; empty otherwise."""
    if not path.is_file():
        return {}
    try:
        saved = torch.load(path, weights_only=True)
        whole = saved.pop("sha256") == _digest(saved)
    except Exception:  # torch's, zipfile's or pickle's own, for any content
        whole = False
    if not whole and warn:
        log.warning(f"{path} has changed since it was written; the reference's log-probabilities are computed again")
    return saved["table"] if whole and saved["key"] == key else {}


def _digest(kept: dict[str, Any]) -> str:
    """Return the hash of a table with its inputs; floats are written out in full."""
    return hashlib.sha256(repr([kept["key"], sorted(kept["table"].items())]).encode()).hexdigest()
