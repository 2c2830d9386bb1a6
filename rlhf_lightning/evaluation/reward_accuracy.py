"""How often rewards rank the chosen answer first, by category, in a table like RewardBench's (Lambert et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rlhf_lightning.data.messages import checked_text
from rlhf_lightning.data.reading import read_records
from rlhf_lightning.data.report import blamed_on
from rlhf_lightning.data.row_values import checked_texts
from rlhf_lightning.data.rows import split_preference
from rlhf_lightning.errors import UserError
from rlhf_lightning.evaluation.win_rate import WinRate, wilson_interval
from rlhf_lightning.rewards import RewardFunction, check_scores

CATEGORIES = ("category", "subset", "kind")  # columns tried if none is named
ALL, MEAN = "all pairs", "mean of the categories"


@dataclass(frozen=True)
class Pair:
    """A preference as rewards read it: prompt and answers as text, and the prompt's messages if it has any."""

    prompt: str
    messages: list[dict[str, Any]] | None
    chosen: str
    rejected: str
    category: str


@dataclass(frozen=True)
class Accuracy:
    """Share of a category's pairs whose chosen answer scores higher (a tie counts half), with Wilson's interval."""

    pairs: int
    share: WinRate


Table = dict[str, dict[str, Accuracy]]
"""Reward -> category -> accuracy."""


def read_pairs(source: str | Path, category: str | None = None, limit: int | None = None) -> list[Pair]:
    """Return the pairs of a preference file.

    Args:
        source: rows of `prompt`, `chosen`, `rejected`, in any form that training reads.
        category: the column that names a pair's category; None: the first existing one of `category`, `subset` and
            `kind`, or no categories.
        limit: read at most this many rows.

    Raises:
        UserError: rows without a pair, an answer of several messages, no such column, or a row without a category
            where others have one.
    """
    rows = read_records(source, limit=limit)
    columns = {name for row in rows for name, value in row.items() if value is not None}
    if category is not None and category not in columns:
        raise UserError(f"category: found {category}; {source} has the columns {', '.join(sorted(columns))}")
    chosen = category or next((name for name in CATEGORIES if name in columns), None)
    pairs = []
    for index, row in enumerate(rows):
        with blamed_on(f"preferences: {source}", index):
            pairs.append(_pair(row, _category(row, chosen)))
    return pairs


def _pair(row: Mapping[str, Any], category: str) -> Pair:
    if row.get("chosen") is None or row.get("rejected") is None:
        raise UserError("it has no chosen and rejected; must be a pair")
    prompt, best, worst = split_preference({**row, **checked_texts(dict(row))})
    messages = prompt if isinstance(prompt, list) else None
    asked = str(prompt) if messages is None else str(messages[-1].get("content") if messages else "")
    return Pair(asked, messages, _text(best), _text(worst), category)


def _category(row: Mapping[str, Any], column: str | None) -> str:
    """Return the category of a pair: a text or a number, and not the name of another row of the table."""
    found = row.get(column) if column else ALL
    if not isinstance(found, str | int | float) or not str(found).strip():
        what = "nothing" if found is None else repr(found)[:80]
        raise UserError(f"{column}: found {what}; must be the pair's category, a text; category= names another column")
    if column and found in (ALL, MEAN):
        raise UserError(f"{column}: found {found!r}, which is a row of the table itself; rename the category")
    return str(checked_text(str(column), str(found)))


def _text(answer: Any) -> str:
    if isinstance(answer, str):
        return answer
    if len(answer) != 1 or not isinstance(answer[0].get("content"), str):
        raise UserError(f"an answer of {len(answer)} messages; rewards read one message of text")
    return str(answer[0]["content"])


def reward_accuracies(rewards: Mapping[str, RewardFunction], pairs: Sequence[Pair]) -> Table:
    """Return the accuracy of every reward on the pairs of each category and on all of them."""
    return {name: _of_one(name, reward, pairs) for name, reward in rewards.items()}


def _of_one(name: str, reward: RewardFunction, pairs: Sequence[Pair]) -> dict[str, Accuracy]:
    columns: dict[str, Any] = {"ended": [True] * (2 * len(pairs))}
    if any(pair.messages is not None for pair in pairs):
        columns["messages"] = [pair.messages for pair in pairs] * 2
    prompts, answers = [pair.prompt for pair in pairs] * 2, [p.chosen for p in pairs] + [p.rejected for p in pairs]
    scores = check_scores(reward(prompts, answers, **columns), len(answers), name, f"rewards.{name}")
    outcomes = [
        1.0 if best > worst else 0.5 if best == worst else 0.0
        for best, worst in zip(scores[: len(pairs)], scores[len(pairs) :], strict=True)
    ]
    groups: dict[str, list[float]] = {}
    for pair, outcome in zip(pairs, outcomes, strict=True):
        groups.setdefault(pair.category, []).append(outcome)
    found = {category: _accuracy(values) for category, values in sorted(groups.items())}
    return found | {ALL: _accuracy(outcomes)}


def _accuracy(outcomes: Sequence[float]) -> Accuracy:
    share = fmean(outcomes)
    return Accuracy(len(outcomes), WinRate(share, *wilson_interval(share, len(outcomes))))


def flat_accuracies(table: Table) -> dict[str, float]:
    """Return the table as one flat object for summary.json: `<reward>.accuracy` and `<reward>.accuracy.<category>`."""
    flat: dict[str, float] = {}
    for name, row in table.items():
        for category, accuracy in row.items():
            key = f"{name}.accuracy" if category == ALL else f"{name}.accuracy.{category}"
            share = accuracy.share
            flat |= {key: share.rate, f"{key}_low": share.low, f"{key}_high": share.high}
            flat[f"{key}_pairs"] = accuracy.pairs
        flat[f"{name}.accuracy_mean_of_categories"] = mean_of_categories(row)
    return flat


def mean_of_categories(row: Mapping[str, Accuracy]) -> float:
    """Return the mean over categories, each with the same weight however many pairs it has."""
    return fmean(accuracy.share.rate for name, accuracy in row.items() if name != ALL or len(row) == 1)
