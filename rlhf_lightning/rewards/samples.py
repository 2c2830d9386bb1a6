"""Passing sampled responses to a reward: their text as it continues the prompt, and optionally the tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_lightning.data import PromptRow, response_texts
from rlhf_lightning.errors import UserError
from rlhf_lightning.rewards.protocol import RewardFunction, as_reward
from rlhf_lightning.rewards.scores import BadScoreError, Scores, check_result, totals


@dataclass(frozen=True)
class SampledTokens:
    """What a policy read and wrote, as unpadded token ids of its tokenizer; an EOS is a response's last token.

    A reward that sets `reads_tokens = True` is called with `sampled=` such an object besides the texts. `state` is the
    `transformers.TrainerState` of a training run; None elsewhere.
    """

    tokenizer: Any
    prompts: list[list[int]]
    responses: list[list[int]]
    state: Any = None


def score_samples(
    reward: RewardFunction,
    tokenizer: Any,
    prompts: Sequence[PromptRow],
    responses: Sequence[list[int]],
    ended: Sequence[bool],
    name: str | None = None,
    state: Any = None,
) -> list[float]:
    """Return one number per response, the sum over its tokens if the reward scores those; see `sample_scores`."""
    return totals(sample_scores(reward, tokenizer, prompts, responses, ended, name, state))


def sample_scores(
    reward: RewardFunction,
    tokenizer: Any,
    prompts: Sequence[PromptRow],
    responses: Sequence[list[int]],
    ended: Sequence[bool],
    name: str | None = None,
    state: Any = None,
) -> Scores:
    """Return the reward of every response, checked: a number, or a list with one number per token.

    Args:
        reward: see RewardFunction. Its `columns` are those of the prompts' rows, and `ended`.
        tokenizer: the policy's.
        prompts: what was answered.
        responses: token ids without padding, including the EOS.
        ended: whether each response has one.
        name: name of the reward in errors; default: its own.
        state: see SampledTokens.

    Raises:
        UserError: the reward did not return exactly one finite number per response, or per token of each.
    """
    ids = [list(row.input_ids) for row in prompts]
    names = {name for row in prompts for name in row.columns} - {"ended"}
    columns: dict[str, Any] = {name: [row.columns.get(name) for row in prompts] for name in sorted(names)}
    columns["ended"] = list(ended)
    asked = as_reward(reward)
    if asked.reads_tokens:
        columns["sampled"] = SampledTokens(tokenizer, ids, list(responses), state)
    texts = response_texts(tokenizer, ids, responses, ended)
    try:
        scores = reward([row.text for row in prompts], texts, **columns)
        shown, lengths = name or asked.name or type(reward).__name__, [len(response) for response in responses]
        return check_result(scores, len(prompts), shown, asked.key or None, lengths)
    except BadScoreError as error:
        row = prompts[error.index]
        raise UserError(f"{error}; its prompt: {row.source}, row {row.number}" if row.number else str(error)) from error
