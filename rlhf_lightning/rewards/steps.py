"""One number per step of a response: where its steps end, and what a function says about each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from rlhf_lightning.data.decoding import decode_after
from rlhf_lightning.errors import UserError
from rlhf_lightning.rewards.protocol import Reward
from rlhf_lightning.rewards.samples import SampledTokens
from rlhf_lightning.rewards.scores import BadScoreError, Scores, check_result, per_token
from rlhf_lightning.value_types import Kernels


def split_steps(text: str, separator: str) -> list[tuple[int, str]]:
    """Return the steps of a response, each with the number of separators before it; white space is not a step.

    A response without any step counts as one empty step.

    >>> split_steps("1 + 1 = 2; ; 2 + 1 = 3;", ";")
    [(0, '1 + 1 = 2'), (2, ' 2 + 1 = 3')]
    """
    found = [(place, part) for place, part in enumerate(text.split(separator)) if part.strip()]
    return found or [(text.count(separator), "")]


def step_ends(
    tokenizer: Any, prompt: Sequence[int], response: Sequence[int], separator: str, places: Sequence[int]
) -> list[int]:
    """Return the place of each step's last token among those of the response.

    That is the token that completes the separator after the step, or the response's last one, an EOS included.

    Args:
        tokenizer: the policy's.
        prompt: token ids before the response, without padding.
        response: token ids, without padding.
        separator: text between steps.
        places: how many separators come before each step.
    """

    def separators(count: int) -> int:
        return decode_after(tokenizer, prompt, response[:count]).count(separator)

    total = separators(len(response))
    ends, before = [], 0
    for place in places:
        if place >= total:
            ends.append(len(response) - 1)
            continue
        low, high = before, len(response)
        while high - low > 1:  # the first `high` tokens have the separator after the step, the first `low` do not
            middle = (low + high) // 2
            low, high = (low, middle) if separators(middle) > place else (middle, high)
        ends.append(high - 1)
        before = low
    return ends


def at_ends(
    sampled: SampledTokens, scores: Sequence[Sequence[float]], separator: str, places: Sequence[Sequence[int]]
) -> list[list[float]]:
    """Return one number per token: that of a step at its last token, 0 elsewhere; steps with the same one add up."""
    placed = []
    for i, response in enumerate(sampled.responses):
        row = [0.0] * len(response)
        ends = step_ends(sampled.tokenizer, sampled.prompts[i], response, separator, places[i])
        for end, score in zip(ends, scores[i], strict=True):
            row[end] += score
        placed.append(row)
    return placed


class StepwiseReward(Reward):
    """A reward that returns a list per response with one number for each step, which goes to the step's last token.

    Args:
        reward: returns the lists.
        separator: text between steps.
    """

    reads_tokens = True

    def __init__(self, reward: Reward, separator: str) -> None:
        self.reward, self.separator = reward, separator
        self.name, self.key = reward.name, reward.key

    def __call__(self, prompts: list[str], responses: list[str], **columns: Any) -> Scores:
        """Return one number per token; without tokens, the sum over each response's steps.

        Raises:
            UserError: numbers that are not one per step.
        """
        sampled = columns.get("sampled")
        given = columns if self.reward.reads_tokens else {k: v for k, v in columns.items() if k != "sampled"}
        scores = check_result(self.reward(prompts, responses, **given), len(responses), self.name, self.key or None)
        steps = [split_steps(text, self.separator) for text in responses]
        if not per_token(scores):
            raise UserError(
                f"{self.key}: {self.name} returned one number per response; with {self.key}'s step_separator it must "
                "return a list with one number per step"
            )
        for i, (row, found) in enumerate(zip(scores, steps, strict=True)):
            if len(row) != len(found):
                raise BadScoreError(
                    f"{self.key}: {self.name}: returned {len(row)} numbers for response {i}, which has {len(found)} "
                    f"steps, separated by {self.separator!r}; return one for each",
                    i,
                )
        if not isinstance(sampled, SampledTokens):
            return [sum(row) for row in scores]
        return at_ends(sampled, scores, self.separator, [[place for place, _ in found] for found in steps])

    def origin(self) -> dict[str, str]:
        """Return the marks of the function, and the separator."""
        return self.reward.origin() | {f"{self.key}.step_separator": repr(self.separator)}

    def to(self, device: torch.device | str) -> StepwiseReward:
        """Move what the reward holds."""
        self.reward.to(device)
        return self

    def use_kernels(self, kernels: Kernels) -> None:
        """Pass the kernels on."""
        self.reward.use_kernels(kernels)

    def share_backbone(self, policy: nn.Module) -> None:
        """Let the reward use the policy's base."""
        self.reward.share_backbone(policy)

    def check_length(self, max_new_tokens: int) -> None:
        """Let the reward refuse the length."""
        self.reward.check_length(max_new_tokens)
