"""Where a run is on its learning-rate schedule, if its iterations may be shorter than planned."""

from __future__ import annotations

import math
from typing import Any

import lightning as L


def steps_per_iteration(trainer: L.Trainer) -> int:
    """Optimiser steps that an epoch plans."""
    return math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)


def scheduled_step(trainer: L.Trainer, done: int) -> int:
    """The step of the schedule at which a run is.

    The schedule spans `estimated_stepping_batches`: all steps of `max_epochs`, or `max_steps` if those are fewer. A run
    is as far as the larger of its share of iterations and its share of `max_steps`, whichever ends it. Where no step is
    left out, that is the number of optimiser steps.

    Args:
        trainer: the run's.
        done: optimiser steps that were planned for the iterations so far, those that were left out included.
    """
    span, limit = trainer.estimated_stepping_batches, trainer.max_steps
    planned = steps_per_iteration(trainer) * (trainer.max_epochs or 0)
    if planned <= 0:  # no end by iterations
        return trainer.global_step if limit >= 0 else done
    by_steps = trainer.global_step if limit >= 0 else 0
    return min(max(done * int(span) // planned, by_steps), int(span))


def go_to(scheduler: Any, step: int) -> None:
    """Step a scheduler up to `step`; never back."""
    while scheduler.last_epoch < step:
        scheduler.step()
