"""From responses to tasks: which are compared, in which order they are shown, who is asked how often."""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from rlhf_lightning.errors import UserError
from rlhf_lightning.feedback.records import EVERYBODY, Prompt, Response, Task, task_id

CHOICES = ("random", "uncertain", "best_worst", "ranking")
SCORED = ("uncertain", "best_worst")  # these need scores


@dataclass(frozen=True)
class Sample:
    """A prompt and the policies' responses to it, possibly several per policy."""

    prompt: Prompt
    responses: tuple[Response, ...]


@dataclass(frozen=True)
class Asking:
    """What is asked, and of how many labelers.

    Args:
        choice: `random` pairs; `uncertain`: the pairs whose scores differ least or, if each response has several
            scores, on whose difference they disagree most; `best_worst`: the highest against the lowest mean score;
            `ranking`: all responses of a prompt at once.
        pairs: the most pairs per prompt; `best_worst` and `ranking` make one task per prompt.
        limit: the most tasks; `uncertain` takes the most uncertain of all prompts. None: no limit.
        overlap: how many labelers answer each task of `overlap_share`.
        overlap_share: share of tasks that `overlap` labelers answer; one labeler answers the others.
        reask: share of tasks that the same labeler is asked again.
        seed: seed of everything random.
    """

    choice: str = "random"
    pairs: int = 1
    limit: int | None = None
    overlap: int = 1
    overlap_share: float = 1.0
    reask: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.choice not in CHOICES:
            raise UserError(f"choice: unknown choice {self.choice!r}; choose one of {', '.join(CHOICES)}")
        for name, value in (("pairs", self.pairs), ("overlap", self.overlap), ("limit", self.limit)):
            if value is not None and value < 1:
                raise UserError(f"{name}: {value}; it must be at least 1")
        for name, share in (("overlap_share", self.overlap_share), ("reask", self.reask)):
            if not 0 <= share <= 1:
                raise UserError(f"{name}: {share}; it must be in [0, 1]")


def check_asking(asking: Asking, responses: int | None, has_scores: bool) -> None:
    """Check that the settings can produce tasks.

    Args:
        asking: what is asked.
        responses: number of responses to each prompt; None: as many as a file has.
        has_scores: whether a reward scores the responses.

    Raises:
        UserError: they cannot.
    """
    if responses is not None and responses < 2:
        raise UserError(
            f"samples_per_prompt: {responses} response to each prompt; a comparison takes at least 2; raise it, or "
            "give more policies"
        )
    if asking.choice in SCORED and not has_scores:
        raise UserError(
            f"choice: {asking.choice} needs scores of the responses; give reward.model=..., or choice=random"
        )
    if has_scores and asking.choice not in SCORED:
        raise UserError(
            f"reward.model: choice={asking.choice} uses no scores; choose one of {', '.join(SCORED)}, or leave it out"
        )


def make_tasks(samples: Iterable[Sample], asking: Asking) -> Iterator[Task]:
    """Yield the tasks of some samples, a function of the samples and of `asking`: a second call yields the same tasks.

    Empty responses are left out, and so are repetitions (up to white space at the ends); a prompt with fewer than two
    responses left makes no task. The order in which responses are shown depends only on the seed and the task, not on
    the order in which they came.

    Raises:
        UserError: `uncertain` or `best_worst` with responses that have no scores, or different numbers of them.
    """
    made = _by_uncertainty(samples, asking) if asking.choice == "uncertain" else _by_prompt(samples, asking)
    seen: set[str] = set()
    for task in made:
        if asking.limit is not None and len(seen) >= asking.limit:
            return
        if task.id not in seen:
            seen.add(task.id)
            yield task


def check_task(prompt: Prompt, best: str, worse: str, seed: int = 0) -> Task:
    """Return a pair whose better response is known, for every labeler to answer.

    Raises:
        UserError: the responses are the same, or one is empty.
    """
    responses = distinct([Response(best, "check"), Response(worse, "check")])
    if len(responses) < 2:
        raise UserError("check task: its two responses must differ, and neither may be empty")
    task = _task("pair", prompt, responses, Asking(overlap=EVERYBODY, reask=0.0, seed=seed))
    (position,) = (i for i, response in enumerate(task.responses) if response.text == best)
    return Task(task.id, task.kind, prompt, task.responses, task.overlap, False, position)


def spread(tasks: Sequence[Task], checks: Sequence[Task]) -> list[Task]:
    """Return the tasks with the check tasks spread evenly among them, never first.

    >>> spread(["a", "b", "c", "d"], ["X", "Y"])
    ['a', 'X', 'b', 'c', 'Y', 'd']
    """
    mixed = list(tasks)
    for i in reversed(range(len(checks))):
        mixed.insert(max(1, (2 * i + 1) * len(tasks) // (2 * len(checks))), checks[i])
    return mixed


def distinct(responses: Iterable[Response]) -> list[Response]:
    """Return the responses without the empty ones and without repetitions.

    >>> [response.text for response in distinct([Response("a"), Response(" "), Response("a\\n"), Response("b")])]
    ['a', 'b']
    """
    first: dict[str, Response] = {}
    for response in responses:
        if response.text.strip():
            first.setdefault(response.text.strip(), response)
    return list(first.values())


def _by_prompt(samples: Iterable[Sample], asking: Asking) -> Iterator[Task]:
    for sample in samples:
        responses = distinct(sample.responses)
        if len(responses) < 2:
            continue
        if asking.choice == "ranking":
            yield _task("ranking" if len(responses) > 2 else "pair", sample.prompt, responses, asking)
        elif asking.choice == "best_worst":
            means = [statistics.fmean(scores) for scores in _scores(sample.prompt, responses)]
            best, worst = means.index(max(means)), len(means) - 1 - means[::-1].index(min(means))
            if means[best] > means[worst]:
                yield _task("pair", sample.prompt, [responses[best], responses[worst]], asking)
        else:
            responses.sort(key=lambda response: response.text)
            pairs = list(combinations(responses, 2))
            numbers = _numbers(asking.seed, "pairs", task_id("ranking", sample.prompt, [r.text for r in responses]))
            for pair in numbers.sample(pairs, min(asking.pairs, len(pairs))):
                yield _task("pair", sample.prompt, pair, asking)


def _by_uncertainty(samples: Iterable[Sample], asking: Asking) -> Iterator[Task]:
    """Yield the most uncertain pairs of each prompt, the most uncertain of all first."""
    found: list[tuple[float, str, Task]] = []
    for sample in samples:
        responses = distinct(sample.responses)
        if len(responses) < 2:
            continue
        scores = dict(zip((response.text for response in responses), _scores(sample.prompt, responses), strict=True))
        of_prompt = []
        for first, second in combinations(responses, 2):
            task = _task("pair", sample.prompt, [first, second], asking)
            of_prompt.append((_certainty(scores[first.text], scores[second.text]), task.id, task))
        found += sorted(of_prompt, key=lambda each: each[:2])[: asking.pairs]
    for _, _, task in sorted(found, key=lambda each: each[:2]):
        yield task


def _certainty(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the margin of one score; for several, the negative spread of their margins."""
    margins = [a - b for a, b in zip(first, second, strict=True)]
    return abs(margins[0]) if len(margins) == 1 else -statistics.stdev(margins)


def _scores(prompt: Prompt, responses: Sequence[Response]) -> list[tuple[float, ...]]:
    counts = {len(response.scores) for response in responses}
    if len(counts) != 1 or counts == {0}:
        raise UserError(
            f"choice: the responses to {str(prompt)[:60]!r} have {sorted(counts)} scores; uncertain and "
            "best_worst need the same number, at least 1, for each; score them, or take choice=random"
        )
    return [response.scores for response in responses]


def _task(kind: str, prompt: Prompt, responses: Iterable[Response], asking: Asking) -> Task:
    shown = sorted(responses, key=lambda response: response.text)
    identity = task_id(kind, prompt, [response.text for response in shown])
    _numbers(asking.seed, "order", identity).shuffle(shown)
    several = _numbers(asking.seed, "overlap", identity).random() < asking.overlap_share
    again = _numbers(asking.seed, "reask", identity).random() < asking.reask
    return Task(identity, kind, prompt, tuple(shown), asking.overlap if several else 1, again)


def _numbers(seed: int, purpose: str, identity: str) -> random.Random:
    return random.Random(f"{seed}:{purpose}:{identity}")
