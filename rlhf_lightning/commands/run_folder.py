"""The run folder: where it is, which checkpoint to resume from, and files that are whole or not there."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from rlhf_lightning.errors import UserError

# Lightning starts further processes by running the command again: they must find the first one's folder.
_SHARED = "RLHF_LIGHTNING_RUN_DIR"
OUTPUTS = Path("outputs")


def first_process() -> bool:
    """Whether this process writes the run's files: rank 0 of Lightning's launcher, torchrun or SLURM."""
    ranks = (os.environ.get(name) for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
    return int(next((rank for rank in ranks if rank), "0")) == 0


def choose_run_dir(config: Mapping[str, Any]) -> Path:
    """`run_dir`, or the run that `ckpt` belongs to, or a new `outputs/<name>/<time>`."""
    if config.get("run_dir"):
        return Path(config["run_dir"])
    if shared := os.environ.get(_SHARED):
        return Path(shared)
    folder = _run_of_checkpoint(config) or _new_folder(OUTPUTS / str(config["name"]))
    os.environ[_SHARED] = str(folder)
    return folder


def forget_run_dir() -> None:
    """After a run, so that the next one in this process (a sweep) gets a folder of its own."""
    os.environ.pop(_SHARED, None)


def _new_folder(parent: Path) -> Path:
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    names = [stamp, *(f"{stamp}_{i}" for i in range(1, 1000))]
    return next(parent / name for name in names if not (parent / name).exists())


def _run_of_checkpoint(config: Mapping[str, Any]) -> Path | None:
    """A run resumed from its own checkpoint goes on in its own folder."""
    if config.get("ckpt") == "last":
        return find_checkpoint(config, None).parents[1]
    if config.get("ckpt"):
        folder = Path(config["ckpt"]).resolve().parents[1]
        return folder if (folder / "config.yaml").is_file() else None
    return None


def find_checkpoint(config: Mapping[str, Any], run_dir: Path | None) -> Path:
    """The checkpoint that `ckpt` names; `last` is the newest of the run folder, or of `outputs/<name>` without one.

    Raises:
        UserError: there is none.
    """
    if config["ckpt"] != "last":
        if not Path(config["ckpt"]).exists():
            raise UserError(f"ckpt: {config['ckpt']} does not exist")
        return Path(config["ckpt"])
    root = run_dir or OUTPUTS / str(config["name"])
    pattern = "checkpoints/*.ckpt" if run_dir else "*/checkpoints/*.ckpt"
    found = sorted(root.glob(pattern), key=lambda path: path.stat().st_mtime)
    if not found:
        raise UserError(f"ckpt: no checkpoint in {root}; start without ckpt=last, or name the run with run_dir=...")
    return found[-1]


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """The composed config, before anything else, and without the summary of an earlier run."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").unlink(missing_ok=True)
    write_atomically(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(dict(config))))


def write_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    """summary.json: one flat object."""
    write_atomically(folder / "summary.json", json.dumps(summary, indent=2) + "\n")


def write_atomically(path: Path, text: str) -> None:
    """Beside the target, synced, then renamed: a reader sees the whole file or the former one."""
    beside = path.with_name(f".{path.name}.tmp")
    with beside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file; none if there is no such file."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
