"""A judge as a reward: a model rates each response by a principle (direct RLAIF, Lee et al. 2023)."""

from __future__ import annotations

from typing import Any

import torch

from rlhf_lightning.content_hashes import content_hash
from rlhf_lightning.errors import key_beside
from rlhf_lightning.judging.comparing import Prompt
from rlhf_lightning.judging.judge import Judge, make_judge
from rlhf_lightning.judging.settings import JudgeSettings
from rlhf_lightning.rewards.protocol import Reward
from rlhf_lightning.rewards.scores import BadScoreError


class JudgeReward(Reward):
    """Scores responses by a judge's mean rating, in [-1, 1] (see `judging.rating`).

    All responses to a prompt are rated by the same principle. Ratings are not stored unless `cache` names a file.

    Args:
        settings: the judge's, see `JudgeSettings`.
        judge: an existing judge to use instead.

    Raises:
        UserError: invalid settings.
    """

    name = "judge"

    def __init__(self, settings: JudgeSettings, judge: Judge | None = None) -> None:
        self.key = key_beside("judge", "reward.")
        own: JudgeSettings = {"cache": None}
        self.settings: JudgeSettings = {**own, **settings}
        self.judge = judge or make_judge(self.settings, prefix=f"{self.key}.")

    def __call__(self, prompts: list[str], responses: list[str], **columns: Any) -> list[float]:
        """Return the scores.

        Raises:
            BadScoreError: the judge's answer about a response cannot be parsed, or the response is too long for it.
        """
        conversations = columns.get("messages") or [None] * len(prompts)
        asked: list[Prompt] = [each or text for each, text in zip(conversations, prompts, strict=True)]
        scores = self.judge.rate(asked, responses)
        missing = [i for i, score in enumerate(scores) if score is None]
        if missing:
            raise BadScoreError(
                f"{self.key}: no rating of {len(missing)} of {len(scores)} responses: they do not parse, or are too "
                f"long for the judge; choose {self.key}.by=logprobs, shorter responses, or another judge",
                missing[0],
            )
        return [score for score in scores if score is not None]

    def to(self, device: torch.device | str) -> JudgeReward:
        """Move the model, if it is in this process."""
        move = getattr(self.judge.model, "to", None)
        if callable(move):
            move(device)
        return self

    def origin(self) -> dict[str, str]:
        """Return the model's files or name and the principles, which a resumed run must find unchanged."""
        model: Any = self.judge.model
        who = getattr(model, "mark", None) or f"{self.settings.get('url')} {self.settings.get('model')}"
        return {self.key: f"{who} {self.judge.by} {content_hash(list(self.judge.principles))}"}
