"""Metrics of a module: recorded batch by batch, logged as means over optimiser steps and processes."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torchmetrics import Metric

from rlhf_lightning.training.processes import of_every_process, of_this_process
from rlhf_lightning.training.weighted_mean import Maximum, WeightedMean, on_host

Statistics = dict[str, tuple[Tensor | float, Tensor | float]]
"""Name -> (mean, weight); for a name that ends in `_max`, (maximum, any weight)."""


class RecordingModule(L.LightningModule):
    """A LightningModule that records weighted means and maxima, and logs them every `log_every_n_steps`.

    Attributes:
        rate: the learning rate of the last optimiser step.
    """

    def __init__(self) -> None:
        super().__init__()
        self.metrics = nn.ModuleDict()
        self.maxima = nn.ModuleDict()
        self.rate: Tensor | None = None
        self._records = True

    def record(self, name: str, value: Tensor | float, weight: Tensor | float = 1.0) -> None:
        """Add to the weighted mean of a metric, over all batches and processes since it was last logged."""
        if not self._records:
            return
        metric = self._metric(name)
        metric.update(value.detach() if isinstance(value, Tensor) else value, weight)

    def record_all(self, statistics: Statistics) -> None:
        """Add to the means of metrics, and to the maxima of those whose names end in `_max`."""
        for name, (value, weight) in statistics.items():
            if name.endswith("_max"):
                self.record_max(name, torch.as_tensor(value))
            else:
                self.record(name, value, weight)

    def _metric(self, name: str) -> WeightedMean:
        key = name.replace(".", "_")
        if key not in self.metrics:
            self.metrics[key] = WeightedMean(self.device)
        metric = self.metrics[key]
        assert isinstance(metric, WeightedMean)
        return metric

    def _recorded(self, prefix: str = "") -> dict[str, WeightedMean]:
        """Return the means with something recorded since they were last logged."""
        metrics = {name: self._metric(name) for name in self.metrics if name.startswith(prefix)}
        return {name: metric for name, metric in metrics.items() if metric.update_called}

    def _unlogged(self, prefix: str = "") -> list[tuple[str, Metric]]:
        """Return the means, then the maxima, with something recorded since they were last logged."""
        maxima = [(name, metric) for name, metric in self.maxima.items() if name.startswith(prefix)]
        recorded: list[tuple[str, Metric]] = [*self._recorded(prefix).items()]
        return recorded + [(name, m) for name, m in maxima if isinstance(m, Metric) and m.update_called]

    def record_max(self, name: str, value: Tensor) -> None:
        """Add to the maximum of a metric, over all batches and processes since it was last logged."""
        if not self._records:
            return
        if name not in self.maxima:
            self.maxima[name] = Maximum(self.device)
        self.maxima[name].update(value.detach())  # type: ignore[operator]

    def log_recorded(self, prefix: str = "", **kwargs: Any) -> dict[str, Tensor]:
        """Log and reset every recorded metric whose name starts with `prefix`; return what was logged.

        Unless they belong to a validation, the learning rate of the last optimiser step is logged with them.
        """
        logged: dict[str, Tensor] = {}
        for name, metric in self._unlogged(prefix):
            logged[name] = metric.compute()
            metric.reset()
        logged = on_host(logged)  # loggers, callbacks and the screen read each number separately
        if self.rate is not None and not prefix:
            logged["lr"] = self.rate
        # They are means already; without a batch size Lightning would guess one from the batch, and fail.
        self.log_dict(logged, rank_zero_only=True, batch_size=1, **kwargs)
        return logged

    def gather(self, x: Tensor) -> Tensor:
        """Return `x` of all processes, stacked in front: [world_size, ...]."""
        if self.trainer.world_size == 1:
            return x.unsqueeze(0)
        gathered = self.all_gather(x)
        assert isinstance(gathered, Tensor)
        return gathered

    def sum_over_processes(self, value: float) -> float:
        """Return the sum over all processes, on every process."""
        if self.trainer.world_size == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float32, device=self.device)
        return float(self.trainer.strategy.reduce(tensor, reduce_op="sum"))

    def max_over_processes(self, value: int) -> int:
        """Return the maximum over all processes, on every process."""
        if self.trainer.world_size == 1:
            return value
        return int(self.gather(torch.tensor(value, device=self.device)).max())

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Every `log_every_n_steps`, log the means over the optimiser steps since the last time."""
        if self.logs_after(batch_idx):
            self.log_recorded(on_step=True, on_epoch=False, prog_bar=True)

    def logs_after(self, batch_idx: int) -> bool:
        """Return whether this batch ends an optimiser step after which the means are logged."""
        stepped = (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0 or self.trainer.is_last_batch
        return stepped and self._logs_this_step()

    def _logs_this_step(self) -> bool:
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return every > 0 and self.global_step % every == 0

    def pending_metrics(self) -> dict[str, float]:
        """Return what loggers get only after a checkpoint at this step: a kill between the two would lose it."""
        if not self._logs_this_step():
            return {}
        pending = {name: float(x) for name, x in on_host({name: m.compute() for name, m in self._unlogged()}).items()}
        return {**pending, "lr": float(self.rate)} if pending and self.rate is not None else pending

    def on_validation_epoch_end(self) -> None:
        """Log the means over the validation set."""
        self.log_recorded("val/", on_step=False, on_epoch=True, prog_bar=True)

    def recorded_state(self) -> dict[str, Any]:
        """Return what is recorded and not yet logged, of every process, for a checkpoint."""
        unlogged = [] if self._logs_this_step() else self._unlogged()
        sums = {name: metric.sums() for name, metric in unlogged if isinstance(metric, WeightedMean)}
        maxima = {name: metric.value for name, metric in unlogged if isinstance(metric, Maximum)}
        return {
            "recorded": of_every_process(on_host(sums)),
            "recorded_maxima": of_every_process(on_host(maxima)),
        }

    def restore_recorded(self, checkpoint: dict[str, Any]) -> None:
        """Continue from what `recorded_state` has put into a checkpoint."""
        for name, sums in (of_this_process(checkpoint.get("recorded", [])) or {}).items():
            self._metric(name).restore(sums)
        for name, value in (of_this_process(checkpoint.get("recorded_maxima", [])) or {}).items():
            self.record_max(name, value.to(self.device))
