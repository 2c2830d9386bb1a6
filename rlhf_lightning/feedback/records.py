"""The records of the store: tasks, answers, judgements, labelers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from rlhf_lightning.content_hashes import content_hash
from rlhf_lightning.errors import UserError
from rlhf_lightning.value_types import MOST_FLAGS

Prompt: TypeAlias = "str | list[dict[str, Any]]"

KINDS = ("pair", "ranking")  # of tasks
LABELER_KINDS = ("person", "model", "simulated")
VERDICTS = ("choice", "tie", "neither", "ranking", "skip")
STRONGEST = 3  # much better; 2 is better, 1 slightly better
EVERYBODY = 1_000_000  # the overlap of a task that every labeler answers
_LONGEST_NOTE = 2000


@dataclass(frozen=True)
class Response:
    """A response and its origin, which labelers never see.

    Args:
        text: the text.
        source: the policy that wrote it.
        scores: reward models' scores, one per model.
    """

    text: str
    source: str = ""
    scores: tuple[float, ...] = ()


@dataclass(frozen=True)
class Task:
    """A prompt with K responses, in the order in which everybody sees them.

    Args:
        id: a function of the prompt and the set of responses (`task_id`).
        kind: `pair` (which of two is better) or `ranking`.
        prompt: a string or messages.
        responses: in the order shown.
        overlap: how many labelers answer it; `EVERYBODY` for all.
        reask: ask each of its labelers a second time, later.
        check: the position of the response known to be best; None if not known.
    """

    id: str
    kind: str
    prompt: Prompt
    responses: tuple[Response, ...]
    overlap: int = 1
    reask: bool = False
    check: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"task {self.id}: unknown kind {self.kind!r}; choose one of {', '.join(KINDS)}")
        if len(self.responses) < 2 or (self.kind == "pair" and len(self.responses) != 2):
            expected = "2" if self.kind == "pair" else "at least 2"
            raise UserError(f"task {self.id}: {self.kind} of {len(self.responses)} responses; it must have {expected}")
        if self.overlap < 1:
            raise UserError(f"task {self.id}: overlap is {self.overlap}; it must be at least 1")
        if self.check is not None and not 0 <= self.check < len(self.responses):
            raise UserError(
                f"task {self.id}: check is {self.check}; it must be a position from 0 to {len(self.responses) - 1}"
            )


@dataclass(frozen=True)
class ShownTask:
    """What a labeler sees of a task: no source, no score, and not whether it is a check."""

    id: str
    kind: str
    prompt: Prompt
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Answer:
    """A labeler's answer to a task.

    Args:
        verdict: `choice` (of a pair), `tie`, `neither` (both are bad), `ranking`, or `skip`.
        choice: the position of the better response, 0 or 1.
        strength: by how much: 1 slightly, 2, 3 much.
        ranks: for a ranking, one rank per response, in the order shown; 1 is best, equal ranks are a tie.
        scores: criterion -> score, such as `{"A.helpful": 4}`.
        flags: flags such as `unsafe`.
        note: free text by the labeler.
    """

    verdict: str
    choice: int | None = None
    strength: int | None = None
    ranks: tuple[int, ...] | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    note: str = ""

    def check(self, kind: str, count: int) -> None:
        """Check that it answers a task of this kind with this many responses.

        Raises:
            UserError: it does not.
        """
        if self.verdict not in VERDICTS:
            raise UserError(f"verdict: unknown verdict {self.verdict!r}; choose one of {', '.join(VERDICTS)}")
        if (self.verdict == "choice") != (self.choice is not None):
            raise UserError("choice: a verdict 'choice', and no other, says which response is better; give 0 or 1")
        if self.verdict in ("choice", "neither", "tie") and kind != "pair":
            raise UserError(f"verdict: {self.verdict!r} answers a pair, and this task is a {kind}; give ranks")
        if self.verdict == "ranking" and kind == "pair":
            raise UserError("verdict: 'ranking' answers a task of several responses, and this is a pair; give a choice")
        if self.choice is not None and self.choice not in (0, 1):
            raise UserError(f"choice: {self.choice!r}; it must be 0 (the first) or 1 (the second)")
        if self.strength is not None and (self.verdict != "choice" or not 1 <= self.strength <= STRONGEST):
            raise UserError(f"strength: {self.strength!r}; a choice has a strength from 1 to {STRONGEST}, or null")
        if (self.verdict == "ranking") != (self.ranks is not None):
            raise UserError("ranks: a verdict 'ranking', and no other, has one rank per response")
        if self.ranks is not None and (len(self.ranks) != count or any(not 1 <= rank <= count for rank in self.ranks)):
            raise UserError(f"ranks: {list(self.ranks)}; they must be {count} numbers from 1 (best) to {count}")
        if len(self.note) > _LONGEST_NOTE or len(self.flags) > MOST_FLAGS or len(self.scores) > 100:
            raise UserError(f"note, flags, scores: at most {_LONGEST_NOTE} characters, {MOST_FLAGS} flags, 100 scores")


@dataclass(frozen=True)
class Judgement:
    """An answer that the store has acknowledged.

    Args:
        id: increases with time.
        task: the task's id.
        labeler: who answered.
        answer: the answer.
        seconds: time since the task was shown; None if not measured.
        created: seconds since 1970.
        repeat: whether the labeler had answered the task before and was asked again.
    """

    id: int
    task: str
    labeler: str
    answer: Answer
    seconds: float | None = None
    created: float = 0.0
    repeat: bool = False


@dataclass(frozen=True)
class Labeler:
    """Who labels: a person, a model, or a simulated labeler. `judged` counts answers that were not undone."""

    name: str
    kind: str = "person"
    judged: int = 0


def task_id(kind: str, prompt: Prompt, texts: Sequence[str]) -> str:
    """Return the id of a task: the same for the same prompt and the same set of responses, in any order.

    >>> task_id("pair", "Hello", ["a", "b"]) == task_id("pair", "Hello", ["b", "a"])
    True
    """
    return content_hash([kind, prompt, sorted(texts)])


def dense_ranks(ranks: Sequence[float]) -> tuple[int, ...]:
    """Return ranks without gaps; equal ranks stay equal.

    >>> dense_ranks([1, 3, 3, 4])
    (1, 2, 2, 3)
    """
    places = {rank: place for place, rank in enumerate(sorted(set(ranks)), start=1)}
    return tuple(places[rank] for rank in ranks)
