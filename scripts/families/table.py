"""The verdicts as a table for the terminal and as the list of docs/models.md."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Sequence
from itertools import groupby

import transformers

from families.judge import Verdict

BEGIN, END = "<!-- families: written by scripts/sweep_families.py --write -->", "<!-- families: end -->"
# The same for `--classifiers`.
CLASSIFIERS = (
    "<!-- classifiers: written by scripts/sweep_families.py --classifiers --write -->",
    "<!-- classifiers: end -->",
)


def table(verdicts: Sequence[Verdict]) -> str:
    """Return one line per family, and the counts."""
    lines = [f"{v.family:28} {v.outcome:10} {_detail(v)}" for v in verdicts]
    counts = Counter(verdict.outcome for verdict in verdicts)
    names = ("right", "refused", "wrong", "traceback", "not built")
    return "\n".join([*lines, "", ", ".join(f"{counts[name]} {name}" for name in names)])


def _detail(verdict: Verdict) -> str:
    if verdict.outcome != "right":
        return verdict.reason
    return f"{verdict.nats:.0e} nats{'' if verdict.cached else ', the slower way'}"


def documented(verdicts: Sequence[Verdict], classifiers: bool = False) -> str:
    """Return the list of docs/models.md."""
    kind = "families of sequence classifiers" if classifiers else "causal families"
    first = "by a score head over the last token" if classifiers else "sampled with a cache"
    second = "by the model's own forward pass" if classifiers else "sampled without a cache, which is slower"
    cached = [v.family for v in verdicts if v.outcome == "right" and v.cached]
    uncached = [v.family for v in verdicts if v.outcome == "right" and not v.cached]
    unknown = [v.family for v in verdicts if v.outcome == "not built"]
    reasons: dict[str, list[str]] = {}
    for verdict in verdicts:
        if verdict.outcome not in ("right", "not built"):
            reasons.setdefault(_cause(verdict.reason), []).append(verdict.family)
    parts = [
        f"Of the {len(verdicts)} {kind} of transformers {transformers.__version__}:",
        _paragraph(f"**Right ({len(cached)}), {first}**", cached),
        _paragraph(f"**Right ({len(uncached)}), {second}**", uncached),
        *(_paragraph(f"**Refused ({len(names)}): {cause}**", names) for cause, names in sorted(reasons.items())),
    ]
    if unknown:
        parts.append(_paragraph(f"**Not tried ({len(unknown)}): no tiny model can be built**", unknown))
    return "\n\n".join(parts)


def _cause(reason: str) -> str:
    if "not a causal language model" in reason:
        maybe = "config.is_decoder=true makes it one" in reason
        return (
            f"later tokens change the probabilities of earlier ones{'; config.is_decoder=true helps' if maybe else ''}"
        )
    if "get different scores" in reason:
        return "rows of a batch get different scores from each row alone"
    if "each row alone" in reason:
        return "rows of a batch get different log-probabilities from each row alone"
    if "get_input_embeddings" in reason:
        return "they have no table of embeddings"
    if "cannot be loaded" in reason:
        return "`AutoModelForCausalLM` does not read what it has written of them"
    if "training mode" in reason:
        return "they compute other numbers in training mode, with dropout off, than in evaluation mode"
    return "their own forward pass needs more than a row of tokens" if "cannot read" in reason else reason


def _paragraph(title: str, names: Sequence[str]) -> str:
    by_letter = [", ".join(f"`{name}`" for name in group) for _, group in groupby(names, key=lambda name: name[0])]
    items = (
        textwrap.fill(line, 100, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False)
        for line in by_letter
    )
    return f"{title}\n\n" + "\n".join(items)


def replace_list(page: str, verdicts: Sequence[Verdict], classifiers: bool = False) -> str:
    """Return the page with the list of these verdicts between its two marks."""
    begin, end = CLASSIFIERS if classifiers else (BEGIN, END)
    return re.sub(
        f"{re.escape(begin)}.*?{re.escape(end)}",
        lambda _: f"{begin}\n\n{documented(verdicts, classifiers)}\n\n{end}",
        page,
        flags=re.DOTALL,
    )
