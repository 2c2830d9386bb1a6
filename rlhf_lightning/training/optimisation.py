"""Building the optimiser and its scheduler from a config."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from rlhf_lightning.compat.lightning_names import let_lightning_clip
from rlhf_lightning.errors import ENDLESS_SCHEDULE, UserError, blaming
from rlhf_lightning.training.lost_updates import warn_of_lost_updates

log = logging.getLogger(__name__)

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]
SchedulerFactory = Callable[..., LRScheduler]


def optimisation(
    trainer: Any, trained: list[nn.Parameter], make_optimizer: OptimizerFactory, make_scheduler: SchedulerFactory | None
) -> Any:
    """Return what Lightning's `configure_optimizers` returns: an optimiser, and a scheduler stepped with it."""
    with blaming("optimizer: cannot be built with these settings"):
        optimizer = make_optimizer(trained)
    if getattr(trainer.precision_plugin, "scaler", None) is None:
        let_lightning_clip(optimizer)
    if trainer.is_global_zero:
        warn_of_lost_updates(optimizer)
    if make_scheduler is None:
        return optimizer
    scheduler = _scheduler(trainer, make_scheduler, optimizer)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def _scheduler(trainer: Any, make: SchedulerFactory, optimizer: Optimizer) -> LRScheduler:
    """Return the scheduler, given the planned number of optimiser steps.

    Raises:
        UserError: it requires the number of steps of a run without an end.
    """
    asks = "num_training_steps" in inspect.signature(make).parameters
    warm_up = getattr(make, "keywords", {}).get("num_warmup_steps") or 0
    if not asks and not warm_up:
        return make(optimizer=optimizer)
    steps = trainer.estimated_stepping_batches
    if asks and not math.isfinite(steps):
        raise UserError(ENDLESS_SCHEDULE)
    if 0 < steps <= warm_up:
        log.warning(
            f"scheduler.num_warmup_steps: found {warm_up}, and the run has {int(steps)} optimiser steps: the "
            "learning rate never reaches optimizer.lr"
        )
    return make(optimizer=optimizer, **({"num_training_steps": int(steps)} if asks else {}))
