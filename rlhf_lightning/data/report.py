"""What was shortened or left out of the data: counted, never silent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rlhf_lightning.errors import UserError

CUT_AWAY, CUT_EQUAL = "truncated to nothing", "no two answers differ once truncated"
BY_LENGTH = (CUT_AWAY, CUT_EQUAL)  # the reasons that a larger `max_length` removes


class NothingKeptError(UserError):
    """No row of a source is left to train on."""


@dataclass
class Report:
    """What became of the rows of a source.

    Attributes:
        source: where they came from.
        read: rows read.
        kept: tokenised rows; true and false answers to the same prompt become one.
        truncated: rows that lost tokens of their prompt or of an answer.
        dropped: rows left out, by reason.
        steps: labelled steps of kept rows.
        steps_dropped: labelled steps that were cut away because their row is too long.
        without_prompt: kept rows (numbered from 1) in which nothing comes before the answer, not even a BOS.
    """

    source: str
    read: int = 0
    kept: int = 0
    truncated: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    steps: int = 0
    steps_dropped: int = 0
    without_prompt: list[int] = field(default_factory=list)

    def __str__(self) -> str:
        reasons = "".join(f", {count} dropped ({reason})" for reason, count in self.dropped.items())
        text = f"{self.source}: {self.read} rows read, {self.kept} kept, {self.truncated} truncated{reasons}"
        every = self.steps + self.steps_dropped
        return f"{text}; of {every} steps, {self.steps_dropped} dropped (beyond the length limit)" if every else text

    def check(self, max_length: int | None = None) -> None:
        """Raise an error if no row is left.

        Raises:
            NothingKeptError: with the reasons, and with the length to raise if that is one of them.
        """
        if self.kept == 0:
            shortened = max_length is not None and any(self.dropped[reason] for reason in BY_LENGTH)
            advice = f"raise data.max_length={max_length}, or check the rows" if shortened else "check the rows"
            raise NothingKeptError(f"{self}; nothing is left to train on; {advice}")


@contextmanager
def blamed_on(source: str, index: int) -> Iterator[None]:
    """Name the row in any error that it causes."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{source}, row {index + 1}: {error}") from error
