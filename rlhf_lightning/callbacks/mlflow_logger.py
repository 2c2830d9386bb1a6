"""Lightning's MLflow logger, behind a tracker: the store cannot stop a run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, TimeoutError
from typing import Any

from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.utilities import rank_zero_only

from rlhf_lightning.callbacks.tracker import PATIENCE, tracker_of

Opening = Callable[[Any, str], object]


class SteadyMLFlowLogger(MLFlowLogger):
    """An `MLFlowLogger` whose calls are made by a thread, in order, and again until the store answers.

    `experiment`, MLflow's client, is Lightning's own and makes its calls at once; `submit` queues one.

    Args:
        store: how messages call the store, without a password; default: `tracking_uri`.
        synchronous: wait after every call until the store has it, or has not answered for a while.
        arguments: of `MLFlowLogger`.
    """

    def __init__(self, *, store: str | None = None, synchronous: bool = False, **arguments: Any) -> None:
        super().__init__(**arguments)
        uri = str(arguments["tracking_uri"])
        self.tracker = tracker_of(uri, store or uri)
        self.synchronous = synchronous
        self.when_open: Opening = lambda client, run_id: None
        self.opened: str | None = None
        self.name_prefix = f"{arguments['prefix']}-" if arguments.get("prefix") else ""

    @property
    def version(self) -> str | None:
        """The run's id, once the store has answered; asking never waits."""
        return self.opened

    @property
    def name(self) -> str | None:
        """As `version`: Lightning's own would ask the store."""
        return self.opened

    @rank_zero_only
    def open(self) -> None:
        """Begin the run, or find it; then call `when_open`. Waits a little for the store."""

        def begin() -> None:
            client = self.experiment
            self.opened = str(self.run_id)
            self.when_open(client, self.opened)

        try:
            self.tracker.submit(begin).result(timeout=PATIENCE)
        except (TimeoutError, CancelledError):
            return

    @rank_zero_only
    def submit(self, call: Opening) -> None:
        """Queue a call, which gets MLflow's client and the run's id."""
        self._queue(lambda: call(self.experiment, str(self.run_id)))

    def _queue(self, call: Callable[[], object]) -> None:
        self.tracker.submit(call)
        if self.synchronous:
            self.tracker.wait()

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Queue the metrics of a step."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        numbers = {allowed_name(name): value for name, value in metrics.items() if not isinstance(value, str)}
        points = [Metric(f"{self.name_prefix}{name}", float(value), now, step or 0) for name, value in numbers.items()]
        self.submit(lambda client, run_id: client.log_batch(run_id, metrics=points))

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        """Queue parameters."""
        self._queue(lambda: MLFlowLogger.log_hyperparams(self, params))

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Queue a checkpoint as an artifact, where `log_model` asks for it."""
        self._queue(lambda: MLFlowLogger.after_save_checkpoint(self, checkpoint_callback))

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        """Queue the end of the run, and wait for the store unless it does not answer."""
        self.tracker.submit(lambda: MLFlowLogger.finalize(self, status))
        self.tracker.wait()


def allowed_name(name: str) -> str:
    """The name with what MLflow does not allow replaced.

    >>> allowed_name("reward/my(fn)@2")
    'reward/my_fn__2'
    """
    return "".join(c if c.isalnum() or c in "_-. /:" else "_" for c in name)
