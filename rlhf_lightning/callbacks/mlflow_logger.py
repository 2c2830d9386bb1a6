"""Lightning's MLflow logger behind a tracker, so that the store cannot stop a run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from rlhf_lightning.callbacks.first_figures import first_figures_first
from rlhf_lightning.callbacks.mlflow_store import NewRun, connect
from rlhf_lightning.callbacks.notice import Notice
from rlhf_lightning.callbacks.system_metrics import SystemMetrics
from rlhf_lightning.callbacks.tracker import Outbox, Point, points_of, tracker_of
from rlhf_lightning.value_types import Seconds

Opening = Callable[[Any, str], object]
_END = 60.0  # seconds that the end of a run waits when no command sets another limit


class SteadyMLFlowLogger(Logger):
    """Logs like Lightning's `MLFlowLogger`, from a thread that retries its calls until the store accepts them.

    Args:
        experiment_name: name of MLflow's experiment, created if it does not exist.
        tracking_uri: address of the store.
        store: what messages call the store, without a password; default: `tracking_uri`.
        synchronous: wait after every call until the store has it, or has not answered for a while.
        prefix: put before the names of metrics.
        notice: reports what the store does not accept.
        parent: the outbox of the run that this one is part of.
        run_name: name of a new run.
        tags: tags of a new run.
        save_dir: as in Lightning; unused if the store has an address.
        log_model: log checkpoints as artifacts: at the end (true), or all of them ("all").
        artifact_location: where a new experiment's artifacts go.
        run_id: id of an existing run to continue.
        system_metrics: seconds between samples of processors, memory, disk, network and GPUs; null: none.
    """

    def __init__(
        self,
        experiment_name: str = "lightning_logs",
        tracking_uri: str = "sqlite:///mlflow.db",
        *,
        store: str | None = None,
        synchronous: bool = False,
        prefix: str = "",
        notice: Notice | None = None,
        parent: Outbox | None = None,
        run_name: str | None = None,
        tags: dict[str, Any] | None = None,
        save_dir: str | None = None,
        log_model: Literal[True, False, "all"] = False,
        artifact_location: str | None = None,
        run_id: str | None = None,
        system_metrics: Seconds | None = None,
    ) -> None:
        super().__init__()
        import mlflow  # noqa: F401 - here, not first in the thread, where another import may wait for it

        self.uri, self.synchronous = tracking_uri, synchronous
        self.arguments: dict[str, Any] = {
            **{"experiment_name": experiment_name, "tracking_uri": tracking_uri, "save_dir": save_dir},
            **{"run_name": run_name, "tags": tags, "log_model": log_model, "artifact_location": artifact_location},
        }
        self.name_prefix = f"{prefix}-" if prefix else ""
        self.outbox = Outbox(
            tracker_of(tracking_uri),
            self._begin,
            self.send_points,
            notice or Notice(store or tracking_uri),
            parent,
            local=tracking_uri.startswith("sqlite:"),
        )
        self.new_run = NewRun(experiment_name, run_name, tags or {}, artifact_location)
        self.find_run: Callable[[Any], str | None] = lambda client: run_id
        self.when_open: Opening = lambda client, run_id: None
        self.known: dict[tuple[str, int], float] = {}  # what the store already has of steps that are done again
        self.opened: str | None = None
        self.is_new = True  # false for a run that is resumed
        self.opens_itself = True  # false where a command opens and ends it
        self.status = "FINISHED"
        self._client = _Client(tracking_uri)
        self._lightning: MLFlowLogger | None = None
        self._trainer: Trainer | None = None
        self._last: dict[str, int] = {}
        self._system = SystemMetrics(system_metrics, self.outbox.add_points) if system_metrics else None

    @property
    def experiment(self) -> Any:
        """Return MLflow's client, whose calls run immediately: within a step they can stop the run; `submit` cannot."""
        return self._client  # Lightning asks for it at the start: connects at the first call

    @property
    def run_id(self) -> str | None:
        """Return the run's id after a short wait for the store; None if it has not answered."""
        if self.opened is None:
            self.open()
        return self.opened

    @property
    def version(self) -> str | None:
        """Return the run's id if the store has answered; never wait."""
        return self.opened

    @property
    def name(self) -> str | None:
        """Return the same as `version`: Lightning's own property would query the store."""
        return self.opened

    def follow(self, trainer: Trainer) -> None:
        """Take the step numbers of points from a trainer: optimiser steps, as in `metrics.jsonl`."""
        self._trainer = trainer

    @rank_zero_only
    def open(self) -> None:
        """Create or find the run, then call `when_open`. Waits briefly for the store."""
        self.outbox.open()
        if self._system is not None:
            self._system.start()

    @rank_zero_only
    def submit(self, call: Opening, label: str = "a call", **how: Any) -> Any:
        """Queue a call, which is given MLflow's client and the run's id; return its future."""
        future = self.outbox.call(label, lambda: call(self.experiment, str(self.opened)), **how)
        self._after()
        return future

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Queue the metrics of a step."""
        at = step or 0
        if self._trainer is not None:
            at = self._trainer.global_step
            # Lightning adds the epoch to every set of metrics, and a step may have several sets.
            metrics = {name: value for name, value in metrics.items() if self._last.get(name) != at}
            self._last.update(dict.fromkeys(metrics, at))
        ordered = first_figures_first(metrics.items())
        self.outbox.add_points(points_of(ordered, at, int(time.time() * 1000), self.name_prefix))
        self._after()

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Queue parameters."""
        self.outbox.call("its hyperparameters", lambda: self._lightnings().log_hyperparams(params))
        self._after()

    @rank_zero_only
    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Queue a checkpoint as an artifact, if `log_model` asks for it."""
        if self.arguments.get("log_model"):
            self.outbox.call(
                "a checkpoint", lambda: self._lightnings().after_save_checkpoint(checkpoint_callback), upload=True
            )
            self._after()

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        """Queue the end of the run, and wait for the store unless it does not answer."""
        self.status = {"success": "FINISHED", "finished": "FINISHED", "failed": "FAILED"}.get(status, status)
        if not self.opens_itself or not (self.outbox.opened or self.outbox.begun):
            return
        self.end()
        if not self.outbox.wait(_END) and (left := self.outbox.close()):
            self.outbox.notice.say(self.outbox.notice.left(", ".join(left)))

    def end(self) -> None:
        """Queue the end of the run, after everything else."""
        if self._system is not None:
            self._system.stop()
        self.outbox.call("its end", self._end_run, last=True)

    def _after(self) -> None:
        if self.opens_itself and not self.outbox.opened:
            self.outbox.open(seconds=0.0)
        if self.synchronous and self.outbox.opened:
            self.outbox.wait(_END)

    # ---- in the tracker's thread

    def _begin(self) -> None:
        client = self.experiment
        if self.opened is None:
            self.opened = self.find_run(client) or self.new_run.make(client)
            self.new_run.keep_one(client, self.opened)
        self.when_open(client, self.opened)

    def _end_run(self) -> None:
        self.new_run.keep_one(self.experiment, str(self.opened))
        self._lightnings().finalize(self.status)

    def _lightnings(self) -> MLFlowLogger:
        """Return Lightning's own logger of the open run."""
        if self._lightning is None:
            made = MLFlowLogger(**{**self.arguments, "run_id": self.opened})
            made.experiment  # noqa: B018 - its `finalize` does nothing before
            self._lightning = made
        return self._lightning

    def send_points(self, points: list[Point]) -> None:
        """Send points immediately, except those that the store already has of steps that are done again."""
        from mlflow.entities import Metric

        new = [point for point in points if not self._is_known(*point)]
        if new:
            self.experiment.log_batch(
                self.opened, metrics=[Metric(name, value, now, step) for name, value, now, step in new]
            )

    def _is_known(self, name: str, value: float, now: int, step: int) -> bool:
        """Return whether the store has this point of a step done again. Times and speeds never match exactly."""
        former = self.known.get((name, step))
        if former is None:
            return False
        return former == value or value != value or any(part in name for part in ("time/", "perf/"))


class _Client:
    """MLflow's client, created at the first call because creating it accesses an SQLite store."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._made: Any = None

    def __getattr__(self, name: str) -> Any:
        if self._made is None:
            self._made = connect(self._uri)
        return getattr(self._made, name)
