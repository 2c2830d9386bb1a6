"""A run: its composed config, its folder and the checkpoint that it resumes. Created once and passed around.

It is created from a config (`Run(config)`), or from what it left in its folder (`read_run`). A pipeline is a run of
runs: its stages refer to it as their `pipeline`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from rlhf_lightning.durable import read_manifest
from rlhf_lightning.errors import UserError, blaming
from rlhf_lightning.hashes import check_files
from rlhf_lightning.runs.checkpoints import find_checkpoint, has_checkpoint, refuse_foreign_resume
from rlhf_lightning.runs.config_file import read_config
from rlhf_lightning.runs.folder_lock import FolderLock
from rlhf_lightning.runs.places import check_place
from rlhf_lightning.runs.quoting import shell_words
from rlhf_lightning.runs.ranks import first_process
from rlhf_lightning.runs.resuming import check_same_run
from rlhf_lightning.runs.run_folder import (
    begin_run,
    choose_run_dir,
    forget_run_dir,
    read_metrics,
    resume_run,
    run_of_checkpoint,
    write_config,
    write_summary,
)
from rlhf_lightning.source.declarations import Declaration, declaration
from rlhf_lightning.stopping import held

AGAIN = "start it again with the same command"
REMEDY = "restore it, or remove it: the model card then leaves that run out"
_SECTIONS = ("model", "algorithm", "data", "reward", "cost", "logger")


class Opened(Protocol):
    """A run in its tracking store."""

    def open(self) -> None:
        """Begin the run there."""


class Run:
    """One training run, or one pipeline.

    Args:
        config: composed and checked, or as read from its folder.
        folder: its folder; None until `find_place`.
        pipeline: the pipeline that it is a stage of.
        summary: the content of its summary.json; empty before its end.

    Attributes:
        checkpoint: the checkpoint that it resumes, known after `find_place`.
        tracking: the run in its tracking store, if it has one.
        problems: what failed after the training.
        begun: whether it has taken over its folder; what was there before belongs to another run.
        saved: whether it has saved a checkpoint itself.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        folder: Path | None = None,
        pipeline: Run | None = None,
        summary: Mapping[str, Any] | None = None,
    ) -> None:
        self.config, self.pipeline, self.summary = config, pipeline, dict(summary or {})
        self.checkpoint: Path | None = None
        self.tracking: Opened | None = None
        self.problems: list[str] = []
        self.begun = self.saved = False
        self._folder, self._started, self._worked = folder, time.monotonic(), time.process_time()

    # ---- what it is

    @property
    def name(self) -> str:
        """Return the name in its config."""
        return str(self.config.get("name"))

    @property
    def algorithm(self) -> str:
        """Return the name of the LightningModule's class."""
        return str(self.config["algorithm"].get("_target_", "")).rpartition(".")[2]

    @property
    def declaration(self) -> Declaration:
        """Return what that class declares."""
        return declaration(self.config)

    @property
    def begins_from(self) -> str:
        """Return the model that the run started with, as given by the user."""
        return str(self.config["model"].get("path"))

    @property
    def is_reward_model(self) -> bool:
        """Return whether it trained a score rather than a policy."""
        return self.declaration.scores

    @property
    def scores_steps(self) -> bool:
        """Return whether it trained a process reward model, which scores the steps of an answer."""
        return self.is_reward_model and self.declaration.data == "steps"

    @property
    def quantized(self) -> bool:
        """Return whether it was trained on 4-bit weights."""
        return bool(self.config["model"].get("quantization"))

    # ---- where it is, and what it contains

    @property
    def folder(self) -> Path:
        """Return the run folder."""
        assert self._folder is not None, "find_place comes first"
        return self._folder

    @property
    def model_folder(self) -> Path:
        """Return the folder of its trained model."""
        return self.folder / "model"

    @property
    def adapter_base(self) -> str | None:
        """Return the base of its model, if that is an adapter; None for a whole model."""
        file = self.model_folder / "adapter_config.json"
        if not file.is_file():
            return None
        return str(json.loads(file.read_text(encoding="utf-8"))["base_model_name_or_path"])

    @property
    def stages(self) -> list[Run]:
        """Return the stages of a pipeline that have begun; none for a training run."""
        folders = [self.folder / name for name in self.config.get("stages") or {}]
        return [run for folder in folders if folder.is_dir() and (run := read_run(folder))]

    def metrics(self) -> list[dict[str, Any]]:
        """Return the rows of metrics.jsonl."""
        return read_metrics(self.folder / "metrics.jsonl")

    # ---- what it resumes

    @property
    def resumes(self) -> bool:
        """Return whether it continues from a checkpoint."""
        return self.checkpoint is not None

    @property
    def ckpt(self) -> str | None:
        """Return what it resumes, as named by the user."""
        return self.config.get("ckpt") or ("last" if self.resumes else None)

    @property
    def steps_before(self) -> int | None:
        """Return the optimiser steps done when its checkpoint was saved, as far as a manifest says."""
        entries = read_manifest(self.checkpoint) if self.checkpoint else []
        return next((entry["global_step"] for entry in entries if "global_step" in entry), None)

    def earlier_metrics(self) -> list[dict[str, Any]]:
        """Return the rows of metrics that its checkpoint's run had written when it was saved."""
        source = self.checkpoint and run_of_checkpoint(self.checkpoint)
        rows, steps = read_metrics(source / "metrics.jsonl") if source else [], self.steps_before
        return [row for row in rows if steps is None or row.get("step", 0) <= steps]

    # ---- its course

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Wrap the run: find its checkpoint, choose its folder, and keep other runs from taking it.

        Raises:
            UserError: there is no such checkpoint, it belongs to another run, or the folder cannot be used.
        """
        self._started, self._worked = time.monotonic(), time.process_time()
        self.find_place()
        with FolderLock(self.folder) as self._lock:
            with blaming(f"run_dir: {self.folder} cannot be used"):
                if not self.resumes:
                    refuse_foreign_resume(self.folder)
                if first_process():
                    check_place(self.folder, self.config)
                    self._lock.check()
            yield
        forget_run_dir()

    def find_place(self) -> None:
        """Find the checkpoint, if one is resumed, and choose the folder. Raises UserError."""
        with blaming(f"ckpt: {self.config.get('ckpt')} cannot be resumed"):
            self.checkpoint = find_checkpoint(self.config)
            if self.checkpoint is not None:
                check_same_run(self.config, self.checkpoint)
        self._folder = choose_run_dir(self.config, self.checkpoint)

    def begin(self) -> None:
        """Take over the folder, unless that is done already; if it fails, the folder is unchanged."""
        if not self.begun:
            self.begun = True
            try:
                if first_process():
                    self._take_over()
            except BaseException:
                self.begun = False
                raise

    def _take_over(self) -> None:
        with held():
            if self.pipeline is not None:
                self.pipeline.begin()
            self._lock.take()
            write_config(self.folder, self.config, self._take_identity)
        if self.tracking is not None:
            self.tracking.open()

    def _take_identity(self) -> None:
        if self.checkpoint is None:
            begin_run(self.folder)
        else:
            resume_run(self.folder, self.checkpoint)

    def seconds(self) -> float:
        """Return how long it has been running."""
        return round(time.monotonic() - self._started, 2)

    def cpu_seconds(self) -> float:
        """Return the processor time that this process used for it, in all threads: other work does not affect it."""
        return round(time.process_time() - self._worked, 2)

    def end(self) -> None:
        """Write summary.json."""
        write_summary(self.folder, self.summary)

    # ---- how to continue after a stop

    def resumable(self) -> str | None:
        """Return the value of `ckpt` that continues what the run has done; None: it has saved nothing yet."""
        own = self.begun and (self.ckpt is None or self.saved) and has_checkpoint(self.folder)
        return "last" if own else self.ckpt

    def advice(self) -> str:
        """Return how to continue with the command after a stop."""
        ckpt = self.resumable()
        if ckpt is None or self._folder is None:
            return AGAIN if ckpt is not None or not self.begun else f"there is no checkpoint yet; {AGAIN}"
        return f"go on with the same command with {shell_words({'ckpt': ckpt, 'run_dir': self.folder})}"


# ---- what an earlier command has left


def read_run(path: str | Path) -> Run | None:
    """Return the training run whose folder, or `model/` in it, this is; None for any other folder or name."""
    run = read_any(path)
    return run if run is not None and "stages" not in run.config else None


def read_any(path: str | Path) -> Run | None:
    """Do the same as `read_run` for a training run or a pipeline."""
    folder = Path(path)
    if folder.name == "model" and (folder.parent / "config.yaml").is_file():
        folder = folder.parent
    if not (folder / "config.yaml").is_file():
        return None
    check_files(folder, ("config.yaml", "summary.json"))
    file = folder / "config.yaml"
    with blaming(f"{file} cannot be read", REMEDY):
        config: Any = read_config(file)
    if not isinstance(config, dict):
        return None
    if not isinstance(config.get("stages"), dict) and not {"model", "algorithm"} <= set(config):
        return None  # from another program
    for section in _SECTIONS:
        if not isinstance(config.get(section) or {}, dict):
            raise UserError(f"{file}: {section} is a {type(config[section]).__name__}, not a section; {REMEDY}")
    file, summary = folder / "summary.json", {}
    with blaming(f"{file} cannot be read", REMEDY):
        if file.is_file():
            summary = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(summary, dict):
            raise ValueError("it is not a JSON object")
    return Run(config, folder, summary=summary)
