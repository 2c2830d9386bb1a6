"""Checkpoints that are folders, as FSDP's and DeepSpeed's strategies write them: whether all parts are there.

Does not need torch, and runs no code from the files.
"""

from __future__ import annotations

import pickletools
import zipfile
from pathlib import Path


def what_a_folder_lacks(path: Path) -> str | None:
    """Return why a checkpoint of several files is incomplete.

    A distributed checkpoint (FSDP) has its index `.metadata` and Lightning's `meta.pt`, both written last. DeepSpeed's
    names the folder of its files in `latest`: the model's states, and one part of the optimiser's per process.
    """
    if (path / "latest").is_file():
        return _what_deepspeed_lacks(path / (path / "latest").read_text(encoding="utf-8").strip())
    if not (path / ".metadata").is_file():
        return "the folder has neither .metadata, the index of FSDP's checkpoints, nor latest, DeepSpeed's"
    if not list(path.glob("*.distcp")):
        return "the folder has no *.distcp files, which hold the states"
    return (
        None if zipfile.is_zipfile(path / "meta.pt") else "the folder has no whole meta.pt, which Lightning writes last"
    )


def _what_deepspeed_lacks(path: Path) -> str | None:
    states = sorted(path.glob("*_states.pt"))
    models = [file for file in states if file.name.endswith("model_states.pt")]
    parts = [file for file in states if file.name.endswith("optim_states.pt")]
    if not models:
        return f"the folder has no model states in {path.name}/"
    for file in states:
        if not zipfile.is_zipfile(file):
            return f"{path.name}/{file.name} is not whole"
    processes = max(_processes(models[0]), len([file for file in models if "zero_pp_rank" in file.name]))
    if parts and len(parts) < processes:
        return f"{path.name}/ has optimiser states of {len(parts)} of {processes} processes"
    return None


def _processes(states: Path) -> int:
    """Return `dp_world_size` from a torch file, read without torch and without unpickling it."""
    with zipfile.ZipFile(states) as archive:
        name = next((name for name in archive.namelist() if name.endswith("data.pkl")), None)
        operations = list(pickletools.genops(archive.read(name))) if name else []
    key = next((i for i, (_, value, _) in enumerate(operations) if value == "dp_world_size"), len(operations))
    numbers = [int(str(value)) for operation, value, _ in operations[key:] if operation.name.startswith("BININT")]
    return numbers[0] if numbers else 0
