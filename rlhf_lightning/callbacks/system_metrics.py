"""Samples of processors, memory, disk, network and GPUs, by MLflow's own monitors, from a thread of its own."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from rlhf_lightning.callbacks.tracker import Point

log = logging.getLogger(__name__)
_PREFIX = "system/"  # MLflow shows them on a page of their own


class SystemMetrics:
    """Pass on a sample at a fixed interval. Nothing here calls the store, so that it cannot wait for it.

    Args:
        seconds: between samples.
        add: takes the points of a sample; its step is the number of seconds since the first one.
    """

    def __init__(self, seconds: float, add: Callable[[list[Point]], object]) -> None:
        self.seconds, self.add = seconds, add
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, once."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="system metrics", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Hand on no more."""
        self._over.set()

    def _watch(self) -> None:
        try:
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            monitor: Any = SystemMetricsMonitor(run_id="", tracking_uri="")
            began = time.time()
            while not self._over.wait(self.seconds):
                monitor.collect_metrics()
                now = time.time()
                figures = monitor.aggregate_metrics()
                self.add(
                    [(f"{_PREFIX}{name}", float(x), int(1000 * now), int(now - began)) for name, x in figures.items()]
                )
                for each in monitor.monitors:
                    each.clear_metrics()
        except Exception as error:  # of a library or a driver: it costs the figures, not the run
            log.warning("logger.system_metrics: no figures of the machine any more (%s)", error)
