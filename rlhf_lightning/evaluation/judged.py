"""Win rates by a judge that compares two answers, asked in both orders, and refusals that a judge sees."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from rlhf_lightning.errors import UserError, blaming
from rlhf_lightning.evaluation.length_control import length_controlled_win_rate
from rlhf_lightning.evaluation.win_rate import win_rate
from rlhf_lightning.judging.comparing import Comparison, same_verdict
from rlhf_lightning.judging.judge import Judge as ModelJudge

log = logging.getLogger(__name__)

Judge = Callable[[Sequence[Any], Sequence[str], Sequence[str]], Sequence[tuple[float, float] | None]]
"""(prompts, answers, other answers) -> the probability that the first is better, for each order of showing them.

None stands for no verdict. A prompt is a text or a list of messages.
"""
Verdicts = Callable[[Sequence[Any], Sequence[str], Sequence[str]], Sequence[float]]
"""(prompts, answers shown first, answers shown second) -> the probability that the first is better."""


def in_both_orders(verdicts: Verdicts, key: str = "judge.function") -> Judge:
    """Return a judge that asks a function twice, with the answers swapped the second time.

    >>> first_wins = in_both_orders(lambda prompts, shown, second: [0.9] * len(shown))
    >>> first_wins(["p"], ["a"], ["b"])
    [(0.9, 0.09999999999999998)]
    """

    def judge(prompts: Sequence[Any], answers: Sequence[str], others: Sequence[str]) -> list[tuple[float, float]]:
        shown = _checked(verdicts, key, prompts, answers, others)
        swapped = _checked(verdicts, key, prompts, others, answers)
        return [(one, 1 - other) for one, other in zip(shown, swapped, strict=True)]

    return judge


def by_model(model: ModelJudge) -> Judge:
    """Return a judge that asks a model, and warns if it gives no verdict on some comparisons."""

    def judge(
        prompts: Sequence[Any], answers: Sequence[str], others: Sequence[str]
    ) -> list[tuple[float, float] | None]:
        asked = [Comparison(*each) for each in zip(prompts, answers, others, strict=True)]
        found = model.compare(asked)
        if unsaid := sum(each is None for each in found):
            log.warning(f"judge: {unsaid} of {len(asked)} comparisons have no verdict that parses, and count as ties")
        return [None if each is None else (each.as_shown, each.swapped) for each in found]

    return judge


class JudgedRefusals:
    """A detector that asks a judge whether a response refuses; None: no verdict that parses."""

    def __init__(self, model: ModelJudge) -> None:
        self.model = model

    def __call__(self, prompt: str, response: str) -> bool | None:
        return self.all_of([prompt], [response])[0]

    def all_of(self, prompts: Sequence[Any], responses: Sequence[str]) -> list[bool | None]:
        """Return the verdict on each response, asked together; a prompt is a text or a list of messages."""
        found = self.model.refuses(prompts, responses) if responses else []
        if undecided := sum(each is None for each in found):
            log.warning(
                f"judge: no verdict on whether {undecided} of {len(found)} responses refuse: it does not parse, or "
                "they are too long for the judge; the refusal rates leave them out"
            )
        return found


def _checked(verdicts: Verdicts, key: str, *asked: Sequence[Any]) -> list[float]:
    with blaming(f"{key}: it failed"):
        found = list(verdicts(*asked))
    if len(found) != len(asked[0]) or not all(isinstance(p, int | float) and 0 <= p <= 1 for p in found):
        raise UserError(
            f"{key}: it must return one probability in [0, 1] for each of {len(asked[0])} comparisons; found "
            f"{str(found)[:80]}"
        )
    return [float(p) for p in found]


def judged_metrics(
    judge: Judge,
    prompts: Sequence[Any],
    answers: Sequence[str],
    others: Sequence[str],
    lengths: Sequence[tuple[int, int]],
    samples_per_prompt: int,
    baseline: str,
) -> dict[str, float]:
    """Return the win rate of one policy against another by a judge, raw and at equal lengths.

    A mean probability over both orders above one half is a win, exactly one half is a tie; identical answers are a tie
    and not sent to the judge. A comparison without a verdict is a tie too, and says nothing about the judge.

    Args:
        judge: asked once per comparison, in both orders.
        prompts: of the comparisons, in prompt-major order.
        answers, others: the policy's and the baseline's answers.
        lengths: lengths of both in tokens.
        samples_per_prompt: number of adjacent entries that answer the same prompt.
        baseline: its name, part of the metrics' names.

    Returns:
        `judge_win_rate_vs_<baseline>` and `judge_win_rate_lc_vs_<baseline>`, each with `_low` and `_high`;
        `judge_first`: the mean probability of the answer that is shown first, 0.5 without a position bias;
        `judge_consistent`: share of the comparisons with the same verdict in both orders. The last two count only the
        comparisons with a verdict, and are left out if there are none.
    """
    asked = [i for i, (one, other) in enumerate(zip(answers, others, strict=True)) if one != other]
    pick: Callable[[Sequence[Any]], list[Any]] = lambda column: [column[i] for i in asked]  # noqa: E731
    said = judge(pick(prompts), pick(answers), pick(others)) if asked else []
    found = {i: pair for i, pair in zip(asked, said, strict=True) if pair is not None}
    means = [sum(found[i]) / 2 if i in found else 0.5 for i in range(len(answers))]
    plain = win_rate(means, [0.5] * len(means), samples_per_prompt)
    outcomes = [1.0 if p > 0.5 else 0.5 if p == 0.5 else 0.0 for p in means]
    own, theirs = [pair[0] for pair in lengths], [pair[1] for pair in lengths]
    equal = length_controlled_win_rate(outcomes, own, theirs, samples_per_prompt)
    metrics: dict[str, float] = {}
    for stem, result in (("judge_win_rate", plain), ("judge_win_rate_lc", equal)):
        key = f"{stem}_vs_{baseline}"
        metrics |= {key: result.rate, f"{key}_low": result.low, f"{key}_high": result.high}
    if found:
        pairs = list(found.values())
        metrics["judge_first"] = sum((one + 1 - other) / 2 for one, other in pairs) / len(pairs)
        metrics["judge_consistent"] = sum(same_verdict(one, other) for one, other in pairs) / len(pairs)
    return metrics
