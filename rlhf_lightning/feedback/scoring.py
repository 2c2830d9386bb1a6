"""Reward models' scores of responses, for choosing pairs by margin or disagreement."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, TypeAlias

import torch

from rlhf_lightning.feedback.records import Prompt
from rlhf_lightning.feedback.tasks import Sample
from rlhf_lightning.message_text import message_text
from rlhf_lightning.rewards import RewardFunction, as_reward, check_scores

Watch: TypeAlias = "Callable[[str, int, int], object]"  # (what is done, how much of it, total)

_AT_ONCE = 64  # samples; a reward model makes its own batches
_TAKEN = ("prompt", "prompts", "messages", "responses", "ended", "sampled")  # passed to rewards as other arguments


@dataclass(frozen=True)
class Answered:
    """A sample, and what a reward receives besides its texts.

    Args:
        sample: a prompt with its responses.
        ended: whether each response was ended by the policy itself.
        columns: columns of the prompt's row.
    """

    sample: Sample
    ended: tuple[bool, ...]
    columns: Mapping[str, Any]


def scored(answered: Iterable[Answered], rewards: Sequence[RewardFunction]) -> Iterator[Sample]:
    """Yield the samples with one score per reward on each response.

    Raises:
        UserError: a reward did not return exactly one finite number per response.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for reward in rewards:
        as_reward(reward).to(device)
    iterator = iter(answered)
    while chunk := list(islice(iterator, _AT_ONCE)):
        scores = iter(zip(*(_scores(reward, chunk) for reward in rewards), strict=True))
        for each in chunk:
            responses = tuple(replace(response, scores=next(scores)) for response in each.sample.responses)
            yield Sample(each.sample.prompt, responses)


def responses_scored(
    samples: Sequence[Sample], rewards: Sequence[RewardFunction], watch: Watch = lambda what, done, of: None
) -> Iterator[Sample]:
    """Yield existing samples, scored if there are rewards. Their responses count as complete."""
    answered = (Answered(each, (True,) * len(each.responses), {}) for each in samples)
    return watched(scored(answered, rewards) if rewards else iter(samples), len(samples), watch)


def watched(samples: Iterable[Sample], count: int, watch: Watch) -> Iterator[Sample]:
    """Yield the samples, and report how many have come."""
    for done, sample in enumerate(samples, start=1):
        watch("tasks", done, count)
        yield sample


def _scores(reward: RewardFunction, chunk: Sequence[Answered]) -> list[float]:
    flat = [(each, number) for each in chunk for number in range(len(each.sample.responses))]
    if not flat:
        return []
    prompts = [each.sample.prompt for each, _ in flat]
    names = {name for each in chunk for name in each.columns} - {*_TAKEN}
    columns: dict[str, Any] = {name: [each.columns.get(name) for each, _ in flat] for name in sorted(names)}
    columns["ended"] = [each.ended[number] for each, number in flat]
    if any(not isinstance(prompt, str) for prompt in prompts):
        columns["messages"] = [None if isinstance(prompt, str) else prompt for prompt in prompts]
    texts = [each.sample.responses[number].text for each, number in flat]
    asked = as_reward(reward)
    found = reward([_text(prompt) for prompt in prompts], texts, **columns)
    return check_scores(found, len(texts), asked.name or type(reward).__name__, asked.key or None)


def _text(prompt: Prompt) -> str:
    """Return a conversation as text, for rewards that do not read messages."""
    return prompt if isinstance(prompt, str) else "\n".join(map(message_text, prompt))
