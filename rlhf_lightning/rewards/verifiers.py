"""Rewards that check: exact match, format, mathematics, and code that runs. Named by their dotted paths.

They have TRL's parameters, take text and conversations, and return 1 for right and 0 for wrong; None where the row has
no reference. Their settings are given as `reward.arguments`.
"""

from __future__ import annotations

import atexit
import importlib.util
import logging
import unicodedata
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import regex

from rlhf_lightning.errors import UserError
from rlhf_lightning.rewards.child_programs import MathWorker, passes
from rlhf_lightning.rewards.protocol import Score
from rlhf_lightning.rewards.references import (
    check_one_reference,
    check_reference,
    check_tests,
    checked_column,
    code_of_tests,
    spellings,
)
from rlhf_lightning.setting_rules import check_verifier
from rlhf_lightning.value_checks import checked
from rlhf_lightning.value_types import Count, Positive, Text

log = logging.getLogger(__name__)

Completions = Sequence[Any]
_late: set[str] = set()  # patterns about which it has been said
_enough: set[int] = set()  # megabytes within which code runs
_TRY_SECONDS = 60.0
_worker = MathWorker()
atexit.register(_worker.close)


@checked("arguments")
def exact_match(
    completions: Completions,
    *,
    column: Text = "answer",
    pattern: Text | None = None,
    ignore_case: bool = False,
    seconds: Positive = 1.0,
    **columns: Any,
) -> list[Score]:
    r"""Return 1 where a completion is its reference, up to white space around the two.

    Args:
        completions: texts, or conversations whose last message counts.
        column: the references: texts or numbers, or lists of them, of which one must match.
        pattern: a regular expression that finds the answer in the completion: its first group, or all of it, at its
            last match, such as `#### (.+)`; null: the whole completion.
        ignore_case: whether upper and lower case are the same.
        seconds: most time per search; a completion that takes longer is wrong.

    Raises:
        UserError: a reference is something else, or an empty text.

    >>> exact_match(["#### 12", "12 is it", "#### 13"], pattern="#### (.+)", answer=[12, 12, None])
    [1.0, 0.0, None]
    """
    compiled = None if pattern is None else _compiled(pattern)
    scores: list[Score] = []
    references = checked_column(columns, column, len(completions), check_reference)
    for completion, reference in zip(completions, references, strict=True):
        known = {_plain(each, ignore_case) for each in spellings(reference)}
        found = _found(compiled, text_of(completion), seconds)
        scores.append(None if not known else float(found is not None and _plain(found, ignore_case) in known))
    return scores


@checked("arguments")
def format_match(
    completions: Completions,
    *,
    pattern: Text | None = None,
    anywhere: bool = False,
    seconds: Positive = 1.0,
    **columns: Any,
) -> list[Score]:
    """Return 1 where a regular expression matches the completion; the dot matches line ends too.

    Args:
        completions: texts, or conversations whose last message counts.
        pattern: the regular expression; required.
        anywhere: whether a part of the completion is enough; else all of it must match.
        seconds: most time per completion; one that takes longer does not match.

    >>> format_match(["<think>a</think>b", "b"], pattern="<think>.*</think>.*")
    [1.0, 0.0]
    """
    check_verifier("format_match", {"pattern": pattern}, "arguments.")
    compiled = _compiled(str(pattern))
    return [float(_matches(compiled, text_of(each), seconds, anywhere) is not None) for each in completions]


@checked("arguments")
def math_verify(
    completions: Completions, *, column: Text = "answer", seconds: Positive = 5.0, **columns: Any
) -> list[Score]:
    """Return 1 where a completion's final answer equals the reference mathematically, by the library math-verify.

    A reference that the library cannot read gives None, as in TRL's accuracy reward.

    Args:
        completions: texts, or conversations whose last message counts.
        column: the references, such as `12`, `$x^2$` or LaTeX in `\\boxed{}`.
        seconds: most time per completion; one that takes longer is wrong. It is compared in another process.

    Raises:
        UserError: math-verify is not installed, or a reference is neither a text nor a number.
    """
    if importlib.util.find_spec("math_verify") is None:
        raise UserError("function: math-verify is not installed here; pip install 'rlhf-lightning[math]'")
    references = checked_column(columns, column, len(completions), check_one_reference)
    return [
        None if reference is None else _worker.compare(str(reference), text_of(completion), seconds)
        for completion, reference in zip(completions, references, strict=True)
    ]


@checked("arguments")
def code_runs(
    completions: Completions,
    *,
    run_code: bool = False,
    column: Text = "tests",
    seconds: Positive = 5.0,
    megabytes: Count = 1024,
    parallel: Count = 2,
    **columns: Any,
) -> list[Score]:
    """Return 1 where a completion's Python code runs, and then its tests, without an error and within the limits.

    The code is the last block between lines of three backquotes, or all of the text. Every completion has a process of
    its own, in an empty folder, without the environment's variables, whose output is dropped. This limits accidents; it
    is not a wall: the code can read what you can read, and it has the network. Run it in a container.

    Args:
        completions: texts, or conversations whose last message counts.
        run_code: must be true: code that a model has written is run on this machine.
        column: the tests, Python code that follows a completion's own, such as `assert add(1, 2) == 3`: a text, or a
            list of them.
        seconds: most time per completion, by the clock.
        megabytes: most memory per process.
        parallel: completions at the same time.

    Raises:
        UserError: tests that are not Python code which can fail, or so little memory that no code runs.
    """
    check_verifier("code_runs", {"run_code": run_code}, "arguments.")
    _check_memory(megabytes)
    tests = checked_column(columns, column, len(completions), check_tests)

    def score(completion: Any, test: Any) -> Score:
        if test is None:
            return None
        return float(passes(code_of(text_of(completion)), code_of_tests(test), seconds, megabytes))

    with ThreadPoolExecutor(parallel) as pool:
        return list(pool.map(score, completions, tests))


def text_of(completion: Any) -> str:
    """Return a completion's text: of a conversation, that of its last message."""
    return str(completion[-1]["content"]) if isinstance(completion, list | tuple) else str(completion)


def code_of(text: str) -> str:
    """Return the last block of code between lines of three backquotes; the whole text if there is none.

    >>> code_of("So:\\n```python\\nx = 1\\n```\\nDone.")
    'x = 1\\n'
    """
    blocks = text.split("```")[1::2]
    if not blocks:
        return text
    first, _, rest = blocks[-1].partition("\n")
    return rest if first.strip().isalnum() or not first.strip() else blocks[-1]


def _check_memory(megabytes: int) -> None:
    """Raise UserError unless a line of code runs within so much memory; tried once."""
    if megabytes not in _enough:
        if not passes("pass", "pass", _TRY_SECONDS, megabytes):
            raise UserError(f"arguments.megabytes: found {megabytes}; no code runs within it on this machine; raise it")
        _enough.add(megabytes)


def _plain(text: str, ignore_case: bool) -> str:
    plain = unicodedata.normalize("NFC", text).strip()
    return plain.casefold() if ignore_case else plain


def _compiled(pattern: str) -> Any:
    try:
        return regex.compile(pattern, regex.DOTALL)
    except (regex.error, OverflowError) as error:
        raise UserError(f"arguments.pattern: {pattern!r} is not a regular expression: {error}") from error


def _found(pattern: Any, text: str, seconds: float) -> str | None:
    """Return the answer at the last match, or the whole text without a pattern."""
    if pattern is None:
        return text
    try:
        matches = [match.group(1 if pattern.groups else 0) for match in pattern.finditer(text, timeout=seconds)]
    except TimeoutError:
        _say_late(pattern.pattern, seconds)
        return None
    return matches[-1] if matches else None


def _matches(pattern: Any, text: str, seconds: float, anywhere: bool) -> Any:
    try:
        return (pattern.search if anywhere else pattern.fullmatch)(text, timeout=seconds)
    except TimeoutError:
        _say_late(pattern.pattern, seconds)
        return None


def _say_late(pattern: str, seconds: float) -> None:
    if pattern not in _late:
        _late.add(pattern)
        log.warning(
            "the pattern %r takes more than %s s for a completion, which counts as no match; write it without nested "
            "repetitions; this is reported once",
            *(pattern, seconds),
        )
