"""A pipeline in its store: the parent of its stages' runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlhf_lightning.runs.command_words import given_command
from rlhf_lightning.runs.pipeline import Pipeline
from rlhf_lightning.runs.ranks import first_process
from rlhf_lightning.stopping import signal_of
from rlhf_lightning.tracking.contents import flat_parameters, log_rounds, log_summary
from rlhf_lightning.tracking.ending import OF_A_STOP, close, seconds_for, wait
from rlhf_lightning.tracking.mlflow_runs import FILE, go_on, is_behind, keep_run, live_run, log_parameters
from rlhf_lightning.tracking.notes import pipeline_note, put_note
from rlhf_lightning.tracking.sending import send_run
from rlhf_lightning.tracking.store import artifact_location, store_notice, uses_mlflow
from rlhf_lightning.tracking.store_check import check_tracking
from rlhf_lightning.tracking.titles import run_title


class PipelineTracking:
    """The parent run of a pipeline: stage runs name it in their tag `mlflow.parentRunId`. It begins when opened.

    With `from` in the pipeline's config, its previous run continues.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        import mlflow  # noqa: F401 - here, not first in the thread

        from rlhf_lightning.callbacks.mlflow_store import NewRun, connect
        from rlhf_lightning.callbacks.tracker import Outbox, tracker_of

        self.client: Any = None
        self.run_id: str | None = None
        self.folder, self._goes_on = pipeline.folder, bool(pipeline.config.get("from"))
        self._pipeline = pipeline
        self._config, self._stages = pipeline.config, [stage.folder for stage in pipeline.to_run]
        logger = pipeline.config["logger"]
        uri = self._uri = logger["tracking_uri"]
        experiment = logger.get("experiment_name", "rlhf-lightning")
        self.notice = store_notice(uri, self.folder)
        self._made = NewRun(
            experiment, run_title(pipeline, given_command()), {"run_dir": str(self.folder)}, artifact_location(uri)
        )

        def begin() -> None:
            self.client = self.client or connect(uri)
            former = live_run(self.folder, self.client, uri) if self._goes_on else None
            if former is not None:
                go_on(self.client, former, {})
            self.run_id = self.run_id or former or self._made.make(self.client)
            self._made.keep_one(self.client, self.run_id)
            keep_run(self.folder, uri, self.run_id)

        self.outbox = Outbox(tracker_of(uri), begin, lambda points: None, self.notice, local=uri.startswith("sqlite:"))

    def open(self) -> None:
        """Begin the run, or continue the previous one."""
        if not self._goes_on:
            (self.folder / FILE).unlink(missing_ok=True)
        note = pipeline_note(self._pipeline, given_command(), {})
        self.outbox.call("its note", lambda: put_note(self.client, str(self.run_id), note))
        self.outbox.open()

    def finish(self, metrics: Mapping[str, Any], files: Iterable[Path]) -> None:
        """Log the summary, the config and the report, send what stages have not sent, and end the run."""
        parameters = flat_parameters(self._config)
        note = pipeline_note(self._pipeline, given_command(), metrics)
        self.outbox.call("its note", lambda: put_note(self.client, str(self.run_id), note))
        self.outbox.call("its parameters", lambda: log_parameters(self.client, str(self.run_id), parameters))
        self.outbox.call("its summary", lambda: log_summary(self.client, str(self.run_id), metrics))
        self.outbox.call("its rounds", lambda: log_rounds(self.client, str(self.run_id), self.folder))
        for file in list(files):
            self.outbox.call(
                "its files",
                lambda file=file: self.client.log_artifact(self.run_id, str(file)),  # type: ignore[misc]
                key=f"file {file}",
                upload=True,
            )
        behind = self._behind()
        for folder in behind:
            self.outbox.call(
                f"stage {folder.name}",
                lambda folder=folder: send_run(folder, self.client, self._uri, self.run_id),  # type: ignore[misc]
                upload=True,
            )
        self._end("FINISHED", seconds_for(*behind), None)

    def fail(self, stopped: bool = False) -> None:
        """End the run as failed, or as stopped."""
        self._end("KILLED" if stopped else "FAILED", OF_A_STOP, OF_A_STOP)

    def _behind(self) -> list[Path]:
        """Return the stages that the store has not received completely."""
        return [folder for folder in self._stages if is_behind(folder, self._uri)]

    def _end(self, status: str, seconds: float, patience: float | None) -> None:
        if self.outbox.opened:
            self.outbox.call("its end", lambda: self.client.set_terminated(self.run_id, status), last=True)
            wait(self.outbox, seconds, patience)
            behind = [f"stage {folder.name}" for folder in self._behind()]
            close(self.outbox, self.folder, self._uri, self._made.key, further=behind)


@contextmanager
def tracked(pipeline: Pipeline) -> Iterator[PipelineTracking | None]:
    """Give a tracked pipeline a run in its store for the block; if the block fails, the run ends as failed."""
    tracking: PipelineTracking | None = None
    if uses_mlflow(pipeline.config) and first_process():
        check_tracking(pipeline.config["logger"]["tracking_uri"])
        pipeline.tracking = tracking = PipelineTracking(pipeline)
    try:
        yield tracking
    except BaseException as error:
        if tracking is not None:
            tracking.fail(stopped=signal_of(error) is not None)
        raise
