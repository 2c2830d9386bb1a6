"""The data of a run as the inputs that MLflow shows: where it came from, and the hash of what was there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rlhf_lightning.file_hashes import sha256_of
from rlhf_lightning.secret_text import shown

_CONTEXT = "mlflow.data.context"
_USES = {"train": "training", "val": "validation"}


def log_inputs(client: Any, run_id: str, config: Mapping[str, Any], summary: Mapping[str, Any] | None = None) -> None:
    """Log the files, folders or hub names of `data.train` and `data.val`; those that the run has already stay once."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    known = {each.dataset.digest for each in client.get_run(run_id).inputs.dataset_inputs}
    found = []
    for split, source in _sources(config.get("data") or {}):
        kind, digest = _identity(source)
        if digest in known:
            continue
        rows = (summary or {}).get(f"{split}_rows")
        profile = json.dumps({"num_rows": rows}) if rows is not None else None
        where = json.dumps({"uri" if kind == "local" else "path": source})
        dataset = Dataset(Path(source).name or source, digest, kind, where, profile=profile)
        found.append(DatasetInput(dataset, [InputTag(_CONTEXT, _USES[split])]))
    if found:
        client.log_inputs(run_id, found)


def _sources(data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for split in _USES:
        given = data.get(split)
        for each in given if isinstance(given, list | tuple) else [given]:
            if isinstance(each, str | Path):
                yield split, shown(str(each))


def _identity(source: str) -> tuple[str, str]:
    """Return where a source is, and a digest, short enough for a column: of the file's content, else of its name."""
    path = Path(source)
    if path.is_file():
        return "local", sha256_of(path)[:12]
    return "local" if path.exists() else "hf", hashlib.sha256(source.encode()).hexdigest()[:12]
