"""A judge built from plain settings: it compares, rates, sees refusals, and revises."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

from rlhf_lightning.addresses import read_key
from rlhf_lightning.judging.comparing import Compared, Comparison, Prompt, compare_by_logprobs, compare_by_reasons
from rlhf_lightning.judging.constitution import SHIPPED, read_constitution
from rlhf_lightning.judging.endpoint import ChatEndpoint
from rlhf_lightning.judging.rating import LEAD, RATINGS, rate_by_logprobs, rate_by_reasons
from rlhf_lightning.judging.refusing import LEAD as REFUSAL_LEAD
from rlhf_lightning.judging.refusing import VERDICTS, refuses_by_logprobs, refuses_by_reasons
from rlhf_lightning.judging.revising import Revised, revise
from rlhf_lightning.judging.settings import DEFAULTS, JudgeSettings, check_judge
from rlhf_lightning.judging.usage import Usage


class JudgeModel(Protocol):
    """A model that answers questions, like `ChatEndpoint` and `LocalJudge`. None for a question that is too long."""

    usage: Usage

    def logprobs(
        self, questions: Sequence[str], verdicts: Sequence[str] = ..., lead: str = ...
    ) -> Sequence[tuple[float, ...] | None]: ...

    def generate(self, questions: Sequence[str]) -> Sequence[str | None]: ...


class Judge:
    """A model that judges by principles.

    Args:
        model: the model to ask.
        principles: one is drawn per question.
        by: `logprobs` of the verdicts, or `reasons`: generated and parsed.
        seed: seed of the draw.
    """

    def __init__(self, model: JudgeModel, principles: Sequence[str], by: str = "logprobs", seed: int = 0) -> None:
        self.model, self.principles, self.by, self.seed = model, tuple(principles), by, seed

    @property
    def usage(self) -> Usage:
        return self.model.usage

    def compare(self, comparisons: Sequence[Comparison]) -> list[Compared | None]:
        """Return the verdict on each comparison, over both orders; None if it cannot be parsed."""
        if self.by == "reasons":
            return compare_by_reasons(comparisons, self.model.generate, self.principles, self.seed)
        return compare_by_logprobs(comparisons, self.model.logprobs, self.principles, self.seed)

    def rate(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[float | None]:
        """Return a score in [-1, 1] for each answer (see `rating`); None if the judge's answer cannot be parsed."""
        if self.by == "reasons":
            return rate_by_reasons(prompts, answers, self.model.generate, self.principles, self.seed)

        def logprobs(questions: Sequence[str]) -> Sequence[tuple[float, ...] | None]:
            return self.model.logprobs(questions, RATINGS, LEAD)

        return rate_by_logprobs(prompts, answers, logprobs, self.principles, self.seed)

    def refuses(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[bool | None]:
        """Return whether each answer refuses (see `refusing`); None if the judge's answer cannot be parsed."""
        if self.by == "reasons":
            return refuses_by_reasons(prompts, answers, self.model.generate)

        def logprobs(questions: Sequence[str]) -> Sequence[tuple[float, ...] | None]:
            return self.model.logprobs(questions, VERDICTS, REFUSAL_LEAD)

        return refuses_by_logprobs(prompts, answers, logprobs)

    def revise(self, prompts: Sequence[Prompt], responses: Sequence[str], rounds: int = 1) -> list[Revised | None]:
        """Return critique and revision of each response; None if the judge writes nothing."""
        return revise(prompts, responses, self.model.generate, self.principles, self.seed, rounds)


def make_judge(settings: JudgeSettings, seed: int = 0, prefix: str = "judge.") -> Judge:
    """Return the judge described by the settings.

    Args:
        settings: the given settings; the others have their defaults.
        seed: seed of the principles, and of generation at a temperature above 0.
        prefix: what the user writes before the settings' names.

    Raises:
        UserError: invalid settings, or no model found.
    """
    check_judge(settings, prefix, generates=True)
    given: dict[str, Any] = {**DEFAULTS, **settings}
    principles = read_constitution(given["constitution"] or SHIPPED, f"{prefix}constitution")
    model: JudgeModel
    if given["url"]:
        model = ChatEndpoint(
            given["url"],
            given["model"],
            read_key(f"{prefix}key_env", given["key_env"]) if given["key_env"] else None,
            given["cache"],
            given["per_minute"] or math.inf,
            given["parallel"],
            given["attempts"],
            given["timeout"],
            {"temperature": given["temperature"], "max_tokens": given["max_new_tokens"]},
            prefix=prefix,
        )
    else:
        from rlhf_lightning.errors import named_as
        from rlhf_lightning.judging.local import LocalJudge

        names = ("dtype", "attn_implementation", "batch_size", "max_new_tokens", "temperature", "cache")
        with named_as(f"{prefix}model", prefix):
            model = LocalJudge(given["model"], **{name: given[name] for name in names}, seed=seed)
    return Judge(model, principles, given["by"], seed)
