"""A training run in its store: it begins there or continues its folder's run, sends its files, and ends."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from rlhf_lightning.runs.command_words import given_command
from rlhf_lightning.runs.ranks import first_process
from rlhf_lightning.runs.run import Run
from rlhf_lightning.secret_text import without_secret_keys
from rlhf_lightning.stopping import signal_of
from rlhf_lightning.tracking.contents import add_version, files_of, flat_parameters
from rlhf_lightning.tracking.ending import OF_A_STAGE, OF_A_STOP, close, seconds_for, wait
from rlhf_lightning.tracking.inputs import log_inputs
from rlhf_lightning.tracking.mlflow_runs import (
    FILE,
    forget_version,
    go_on,
    has_latest,
    keep_run,
    keep_version,
    known_points,
    live_run,
    log_missing,
    log_parameters,
    points_of_rows,
)
from rlhf_lightning.tracking.notes import put_note, run_note
from rlhf_lightning.tracking.pipeline_tracking import PipelineTracking
from rlhf_lightning.tracking.store import artifact_location, store_notice
from rlhf_lightning.tracking.titles import run_title

if TYPE_CHECKING:
    from rlhf_lightning.callbacks import SteadyMLFlowLogger


def pipeline_of(run: Run) -> PipelineTracking | None:
    """Return its pipeline's run in the store, if it is a stage of a tracked pipeline."""
    tracking = run.pipeline.tracking if run.pipeline is not None else None
    return tracking if isinstance(tracking, PipelineTracking) else None


def logger_settings(run: Run) -> dict[str, Any]:
    """Return what a run's logger receives besides its section's settings."""
    section, parent = run.config["logger"], pipeline_of(run)
    uri = section["tracking_uri"]
    return {
        "run_name": section.get("run_name") or run_title(run, given_command()),
        "tags": {**without_secret_keys(section.get("tags") or {}), "run_dir": str(run.folder)},
        "artifact_location": section.get("artifact_location") or artifact_location(uri),
        "notice": parent.notice if parent is not None else store_notice(uri, run.folder),
        "parent": parent.outbox if parent is not None else None,
    }


def join_run(logger: SteadyMLFlowLogger, run: Run) -> None:
    """Have a logger begin the run, or continue the folder's run, once it is opened."""
    if not first_process():  # other processes' loggers do nothing
        return
    uri, parent, made = run.config["logger"]["tracking_uri"], pipeline_of(run), logger.new_run

    def find(client: Any) -> str | None:
        if parent is not None and parent.run_id is not None:
            made.tags["mlflow.parentRunId"] = parent.run_id
        former: str | None = run.config["logger"].get("run_id")
        if former is None and run.resumes:
            former = live_run(run.folder, client, uri)
        if former is not None:
            go_on(client, former, made.tags)
            if run.resumes:
                names = points_of_rows(run.metrics(), logger.name_prefix)
                logger.known = known_points(client, former, names, run.steps_before or 0)
        elif run.resumes:
            rows = run.earlier_metrics()
            logger.outbox.call(
                "its earlier metrics",
                lambda: log_missing(client, str(logger.opened), rows, logger.name_prefix, logger.send_points),
            )
        logger.outbox.troubled |= run.resumes  # its end looks for what an earlier part has not sent
        return former

    logger.opens_itself = False
    logger.find_run = find
    logger.when_open = lambda client, run_id: keep_run(run.folder, uri, run_id)
    logger.submit(lambda client, run_id: log_parameters(client, run_id, flat_parameters(run.config)), "its parameters")
    logger.submit(partial(_describe, run=run, note=run_note(run, given_command())), "its note")
    logger.is_new = not run.resumes


def _describe(client: Any, run_id: str, run: Run, note: str) -> None:
    put_note(client, run_id, note)
    log_inputs(client, run_id, run.config, run.summary)


class RunTracking:
    """A training run in its store; without a store, its methods do nothing.

    Args:
        run: the run.
        loggers: its Trainer's loggers.
    """

    def __init__(self, run: Run, loggers: Iterable[Any]) -> None:
        self.run, self._silent = run, pipeline_of(run) is not None  # a pipeline reports for its stages
        self._logger: Any = next((each for each in loggers if type(each).__name__ == "SteadyMLFlowLogger"), None)

    def open(self) -> None:
        """Begin the run in its store."""
        if self._logger is not None:
            if self._logger.is_new:
                # The MLflow runs of an earlier run in this folder do not belong to this one.
                (self.run.folder / FILE).unlink(missing_ok=True)
            self._logger.open()

    def send_files(self) -> None:
        """Queue the run folder's small files, plots and exported model as artifacts."""
        if self._logger is not None:
            self._logger.submit(self._send_missing, "metrics", key="all metrics", after="metrics")
            note = run_note(self.run, given_command())
            self._logger.submit(partial(_describe, run=self.run, note=note), "its note")
            for label, key, attach in files_of(self.run.folder):
                self._logger.submit(attach, label, key=key, upload=True)

    def _send_missing(self, client: Any, run_id: str) -> None:
        """Compare the store with `metrics.jsonl`: completely if something failed, else only its end."""
        rows, prefix = self.run.metrics(), self._logger.name_prefix
        if self._logger.outbox.troubled or not has_latest(client, run_id, rows, prefix):
            log_missing(client, run_id, rows, prefix, self._logger.send_points)

    def register(self, name: str) -> Future[str]:
        """Queue the registration of the logged model folder as a new version of the model `name`.

        The version points to the run's artifacts, so `models:/<name>/<version>` is the exported folder.

        Returns:
            the version, once the store has answered.
        """
        logger = self._logger
        assert logger is not None, "checked before the run"
        forget_version(self.run.folder, logger.uri)

        def register(client: Any, run_id: str) -> str:
            version = add_version(client, run_id, name)
            keep_version(self.run.folder, logger.uri, version)
            return version

        version: Future[str] = logger.submit(register, f"the registered model {name}", after="model ", quiet=True)
        return version

    def finish(self) -> None:
        """Wait for the store at the end of the run; what it does not accept is left to rlhf-track, with one message."""
        if self._logger is not None and self._logger.outbox.opened:
            self._logger.end()
            wait(self._logger.outbox, seconds_for(self.run.folder), OF_A_STAGE if self._silent else None)
            self._close()

    @contextmanager
    def to_the_end(self) -> Iterator[None]:
        """Make sure that a run that is stopped, or fails, also ends in its store."""
        logger = self._logger
        try:
            yield
        except BaseException as error:
            if logger is not None and logger.outbox.opened:
                logger.status = "FAILED" if signal_of(error) is None else "KILLED"
                logger.end()
                logger.outbox.wait(OF_A_STOP, OF_A_STOP)
                self._close()
            raise
        finally:
            if logger is not None:
                logger.outbox.close()

    def _close(self) -> None:
        close(self._logger.outbox, self.run.folder, self._logger.uri, self._logger.new_run.key, silent=self._silent)
