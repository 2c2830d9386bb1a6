"""A running pipeline: a run of runs, and how to continue it after a stop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from rlhf_lightning.errors import UserError
from rlhf_lightning.runs.calls import CalledRun
from rlhf_lightning.runs.checkpoints import has_checkpoint
from rlhf_lightning.runs.quoting import shell_words
from rlhf_lightning.runs.resuming import changed_since
from rlhf_lightning.runs.run import AGAIN, Run
from rlhf_lightning.runs.run_folder import forget_end, read_summary, write_config
from rlhf_lightning.source.declarations import declaration


@dataclass(frozen=True)
class StageConfig:
    """One stage, ready to run: its name, its config, and the earlier stage it takes its model from.

    The config is that of a training run, or names under `call` the function that does the work. A member of an ensemble
    has a name of its own; `stage` is the ensemble's.
    """

    name: str
    config: dict[str, Any]
    model_from: str | None = None
    stage: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """Return its name and, of a member, the ensemble's."""
        return (self.name, self.stage) if self.stage else (self.name,)

    @property
    def folder(self) -> Path:
        """Return its run folder."""
        return Path(self.config["run_dir"])

    @property
    def key(self) -> str:
        """Return what a user writes before its keys."""
        return f"stages.{self.name}."

    @property
    def trains(self) -> bool:
        """Return whether it trains a model rather than calling a function."""
        return "call" not in self.config

    @property
    def scores(self) -> bool:
        """Return whether it trains a reward model."""
        return self.trains and declaration(self.config).scores

    @property
    def gives_policy(self) -> bool:
        """Return whether it trains a policy."""
        return self.trains and not self.scores


class Pipeline(Run):
    """A running pipeline.

    Args:
        config: the pipeline's, with its stages as they were written.
        folder: where it is.
        to_run: its stages, composed.

    Attributes:
        runs: the runs that its stages have begun in this command.
    """

    def __init__(self, config: Mapping[str, Any], folder: Path, to_run: Sequence[StageConfig]) -> None:
        super().__init__(config, folder)
        self.to_run = to_run
        self.runs: list[Run] = []
        self._ended = 0
        self._current: Run | None = None

    @property
    def ended(self) -> list[StageConfig]:
        """Return the stages that have ended so far."""
        return list(self.to_run[: self._ended])

    @property
    def skipped(self) -> list[StageConfig]:
        """Return the stages before `from`, which ended earlier."""
        first = self.config.get("from")
        return list(takewhile(lambda stage: first not in stage.names, self.to_run)) if first else []

    @property
    def names(self) -> list[str]:
        """Return the names of its stages, and of ensembles."""
        return list(dict.fromkeys(name for stage in self.to_run for name in reversed(stage.names)))

    @property
    def ahead(self) -> list[StageConfig]:
        """Return the stages that will run."""
        return list(self.to_run[len(self.skipped) :])

    def begin_stage(self) -> Run:
        """Return the run of the next stage, which begins now."""
        stage = self.to_run[self._ended]
        self._current = (Run if stage.trains else CalledRun)(stage.config, pipeline=self)
        self.runs.append(self._current)
        return self._current

    def end_stage(self) -> None:
        """Note that the stage has ended, now or earlier."""
        self._ended, self._current = self._ended + 1, None

    def _take_over(self) -> None:
        """Take over the folder, once the first stage has loaded everything and begins."""
        if self.config.get("go_on"):
            for stage in self.ahead[1:]:
                forget_end(stage.folder)  # it does not come from what the earlier stages are about to make
        write_config(self.folder, {**self.config, "stages": {stage.name: stage.config for stage in self.to_run}})
        if self.tracking is not None:
            self.tracking.open()

    @property
    def same_command(self) -> str:
        """Return the command again, in a form that finds out itself what is left to do."""
        return "the same command" + ("" if self.config.get("run_dir") else f" with run_dir={self.folder}")

    def advice(self) -> str:
        """Return how to continue. Once all stages have ended, the last one is resumed with nothing left to train."""
        if self.config.get("go_on"):
            return f"go on with {self.same_command}"
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


def take_up(pipeline: Pipeline) -> None:
    """Set `from`, and the `ckpt` of a stopped stage, so that the pipeline continues with what its folder lacks.

    Once all stages have ended, the last one is resumed with nothing left to train.

    Raises:
        UserError: a stage has ended there with another config.
    """
    if not (pipeline.folder / "config.yaml").is_file():
        return
    left = [stage for stage in pipeline.to_run if not _has_ended(stage)] or pipeline.to_run[-1:]
    pipeline.config = {**pipeline.config, "from": left[0].name}
    if left[0].trains and left[0].config.get("ckpt") is None and has_checkpoint(left[0].folder):
        left[0].config["ckpt"] = "last"


def _has_ended(stage: StageConfig) -> bool:
    if not read_summary(stage.folder):
        return False
    for key, former, now in changed_since(stage.folder, stage.config):
        raise UserError(
            f"{stage.key}{key}: found {now}, but the stage has ended in {stage.folder} with {former}; use the previous "
            f"value or another run_dir, or run this stage and all after it again with from={stage.name}"
        )
    return True


def stage_metrics(results: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stage's part of the pipeline's summary: held-out metrics and, if it samples, KL and coefficient."""
    metrics = {key.removeprefix("val/"): value for key, value in results.items() if key.startswith("val/")}
    metrics |= {key: results[key] for key in ("wall_seconds", "cpu_seconds") if key in results}
    if declaration(config).on_policy:
        given = config["algorithm"].get("kl")
        kl = given if isinstance(given, Mapping) else {}
        metrics |= {
            "kl": results.get("objective/kl"),  # replaced by the evaluation's, on unseen prompts, if there is one
            "train_kl": results.get("objective/kl"),
            "kl_coef": results.get("kl/coef"),
        }
        if kl.get("kind", "fixed") != "fixed":
            metrics["kl_target"] = kl.get("target")
    return metrics
