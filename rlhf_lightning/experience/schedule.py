"""The position on the learning-rate schedule if iterations may be shorter than planned."""

from __future__ import annotations

import math
from typing import Any

import lightning as L


def steps_per_iteration(trainer: L.Trainer) -> int:
    """Return the planned number of optimiser steps per epoch."""
    return math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)


def scheduled_step(trainer: L.Trainer, done: int) -> int:
    """Return a run's step on the schedule.

    The schedule spans `estimated_stepping_batches`: all steps of `max_epochs`, or `max_steps` if those are fewer.
    Progress is the larger of the run's share of iterations and its share of `max_steps`, whichever ends it. If no step
    is skipped, that is the number of optimiser steps.

    Args:
        trainer: the run's Trainer.
        done: optimiser steps planned for the iterations so far, including skipped ones.
    """
    span, limit = trainer.estimated_stepping_batches, trainer.max_steps
    planned = steps_per_iteration(trainer) * (trainer.max_epochs or 0)
    if planned <= 0:  # iterations set no end
        return trainer.global_step if limit >= 0 else done
    by_steps = trainer.global_step if limit >= 0 else 0
    return min(max(done * int(span) // planned, by_steps), int(span))


def go_to(scheduler: Any, step: int) -> None:
    """Step a scheduler forward to `step`; never back."""
    while scheduler.last_epoch < step:
        scheduler.step()
