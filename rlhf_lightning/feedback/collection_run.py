"""A collection from the settings of `rlhf-collect`: rows are read, and the store opened, before a model is loaded."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from rlhf_lightning.environment import typed
from rlhf_lightning.errors import UserError, named_as
from rlhf_lightning.feedback.collecting import add_tasks, collect_tasks, outlook
from rlhf_lightning.feedback.drawing import Drawing
from rlhf_lightning.feedback.scoring import Watch, responses_scored
from rlhf_lightning.feedback.sources import read_checks, read_prompts, read_responses
from rlhf_lightning.feedback.store import DEFAULT_STORE, FeedbackStore
from rlhf_lightning.feedback.tasks import Asking, distinct
from rlhf_lightning.rewards import make_reward
from rlhf_lightning.secret_text import shown

_NOT_COUNTED = ", which a comparison takes; empty ones and white space at the ends do not count"


def run_collection(
    settings: Mapping[str, Any],
    asking: Asking,
    drawing: Drawing,
    rewards: Sequence[Mapping[str, Any]],
    progress: Callable[[], AbstractContextManager[Watch]],
) -> list[str]:
    """Collect, or with `explain` find out what would be sampled, and return the lines to print.

    Args:
        settings: the command's settings.
        asking: what is asked.
        drawing: how responses are sampled.
        rewards: the settings of each reward whose margins select pairs.
        progress: returns the function to report progress to.

    Raises:
        UserError: a file, a policy, a reward or the store cannot be used.
    """
    url, policies = settings["feedback"]["store"], settings["policies"]
    checks = read_checks(settings["checks"], asking.seed) if settings["checks"] else []
    if settings["prompts"]:
        prompts = read_prompts(settings["prompts"], settings["limit"])
        if settings["explain"]:
            return outlook(url, prompts, policies, drawing)
    else:
        samples = read_responses(settings["responses"], settings["limit"])
        if not any(len(distinct(each.responses)) > 1 for each in samples):
            raise UserError(f"responses: {settings['responses']}: no prompt has two different responses{_NOT_COUNTED}")
        if settings["explain"]:
            return [f"{len(samples)} prompts of {settings['responses']}, nothing to sample"]
    with named_as("reward.model"):
        scorers = [make_reward(**each) for each in rewards]
    with FeedbackStore(url) as store, progress() as watch:
        if settings["prompts"]:
            done = collect_tasks(store, prompts, policies, asking, drawing, rewards=scorers, checks=checks, watch=watch)
            added, there = done.added, done.there
            lines = [f"sampled: {done.sampled} responses to {done.prompts} prompts; {done.known} already there"]
        else:
            added, there = add_tasks(store, responses_scored(samples, scorers, watch), asking, checks)
            lines = [f"read: {sum(len(each.responses) for each in samples)} responses to {len(samples)} prompts"]
        if not added + there:
            lines.append(f"no tasks: no prompt has two different responses{_NOT_COUNTED}{_ties(asking)}")
            return lines
        lines.append(f"tasks: {added} new in {store.name}; {there} already there")
    elsewhere = "" if url == DEFAULT_STORE else f" {shlex.quote(f'feedback.store={shown(url)}')}"
    return [*lines, f"next: {typed('rlhf-label')} labelers=[ana,bo]{elsewhere}"]


def _ties(asking: Asking) -> str:
    return ", and neither do equal mean scores" if asking.choice == "best_worst" else ""
