"""A pipeline under way: a run of runs, and how to go on with it after a stop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_lightning.runs.checkpoints import has_checkpoint
from rlhf_lightning.runs.quoting import shell_words
from rlhf_lightning.runs.run import AGAIN, Run
from rlhf_lightning.runs.run_folder import write_config
from rlhf_lightning.source.declarations import declaration


@dataclass(frozen=True)
class StageConfig:
    """One stage, ready to run: its name, its training config, and the earlier stages it takes its model from."""

    name: str
    config: dict[str, Any]
    model_from: str | None = None

    @property
    def folder(self) -> Path:
        """Its run folder."""
        return Path(self.config["run_dir"])

    @property
    def key(self) -> str:
        """What a user writes before its keys."""
        return f"stages.{self.name}."

    @property
    def scores(self) -> bool:
        """Whether it trains a reward model."""
        return declaration(self.config).scores


class Pipeline(Run):
    """A pipeline under way.

    Args:
        config: of the pipeline, with its stages as they were written.
        folder: where it is.
        to_run: its stages, composed.

    Attributes:
        runs: those that its stages have begun in this command.
    """

    def __init__(self, config: Mapping[str, Any], folder: Path, to_run: Sequence[StageConfig]) -> None:
        super().__init__(config, folder)
        self.to_run = to_run
        self.runs: list[Run] = []
        self._ended = 0
        self._current: Run | None = None

    @property
    def skipped(self) -> list[StageConfig]:
        """The stages before `from`, which have ended before."""
        names = [stage.name for stage in self.to_run]
        return list(self.to_run[: names.index(self.config["from"])]) if self.config.get("from") else []

    @property
    def ahead(self) -> list[StageConfig]:
        """The stages that are run."""
        return list(self.to_run[len(self.skipped) :])

    def begin_stage(self) -> Run:
        """Return the run of the next stage, which begins now."""
        self._current = Run(self.to_run[self._ended].config, pipeline=self)
        self.runs.append(self._current)
        return self._current

    def end_stage(self) -> None:
        """The stage has ended, or ended before."""
        self._ended, self._current = self._ended + 1, None

    def _take_over(self) -> None:
        """Its first stage has loaded everything, and begins."""
        write_config(self.folder, {**self.config, "stages": {stage.name: stage.config for stage in self.to_run}})
        if self.tracking is not None:
            self.tracking.open()

    def advice(self) -> str:
        """Return how to go on. Once all stages have ended, the last one is taken up with nothing left to train."""
        stage, current = self.to_run[min(self._ended, len(self.to_run) - 1)], self._current
        if self._ended == len(self.to_run):
            ckpt = "last" if has_checkpoint(stage.folder) else None
        else:
            ckpt = current.resumable() if current else stage.config.get("ckpt")
        if ckpt is None and self._ended == 0:
            return f"there is no checkpoint yet; {AGAIN}" if current and current.begun else AGAIN
        resumed = {} if ckpt is None else {f"{stage.key}ckpt": ckpt}
        overrides = {"from": stage.name, **resumed, "run_dir": self.folder}
        return f"go on with the same command with {shell_words(overrides)}"
