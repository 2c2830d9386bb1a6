"""Reading the labelling page's forms."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qs

from starlette.requests import Request

from rlhf_lightning.errors import UserError
from rlhf_lightning.feedback.records import Answer, dense_ranks

_LARGEST = 64 * 1024  # bytes
_CHOICE = re.compile(r"([ab])([123])")
_SCORE = re.compile(r"score_(\d{1,2})_(.{1,40})", re.DOTALL)


@dataclass(frozen=True)
class Form:
    """The fields of a submitted form."""

    fields: Mapping[str, list[str]]

    def one(self, name: str) -> str:
        """Return a field; empty if it is missing."""
        return self.fields.get(name, [""])[0]


async def posted(request: Request) -> Form:
    """Read a form, `application/x-www-form-urlencoded`.

    Raises:
        UserError: it is too large, or has another content type.
    """
    if not request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        raise UserError("form: it must be sent as application/x-www-form-urlencoded")
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _LARGEST:
            raise UserError(f"form: it has more than {_LARGEST} bytes; shorten the note")
    try:
        return Form(parse_qs(body.decode("ascii"), keep_blank_values=True, max_num_fields=500))
    except ValueError as error:
        raise UserError("form: it cannot be read; reload the page and answer again") from error


def answer_of(form: Form, criteria: tuple[str, ...], flags: tuple[str, ...]) -> Answer:
    """Return the answer that a form gives.

    Args:
        form: a form of the labelling page.
        criteria: criteria that may have scores.
        flags: flags that may be set.

    Raises:
        UserError: it gives none.
    """
    said = form.one("answer")
    more = {
        "scores": _scores(form, criteria),
        "flags": tuple(flag for flag in flags if flag in form.fields.get("flag", [])),
        "note": form.one("note").replace("\r\n", "\n").strip(),
    }
    if found := _CHOICE.fullmatch(said):
        return Answer("choice", "ab".index(found[1]), int(found[2]), **more)  # type: ignore[arg-type]
    if said in ("tie", "neither", "skip"):
        return Answer(said, **more)  # type: ignore[arg-type]
    if said == "ranking":
        return Answer("ranking", ranks=_ranks(form), **more)  # type: ignore[arg-type]
    raise UserError("answer: nothing was chosen; go back and choose one of the answers")


def _ranks(form: Form) -> tuple[int, ...]:
    ranks: list[int] = []
    while f"rank_{len(ranks)}" in form.fields:
        value = form.one(f"rank_{len(ranks)}")
        if not value.isdecimal() or len(value) > 3:
            raise UserError("ranks: each answer needs a rank; go back and choose one for each")
        ranks.append(int(value))
    return dense_ranks(ranks)


def _scores(form: Form, criteria: tuple[str, ...]) -> dict[str, float]:
    scores = {}
    for name, values in form.fields.items():
        found = _SCORE.fullmatch(name)
        if found and found[2] in criteria and values[0] in ("1", "2", "3", "4", "5"):
            scores[f"{letter(int(found[1]))}.{found[2]}"] = float(values[0])
    return scores


def letter(position: int) -> str:
    """Return the name of a response on the page.

    >>> letter(0), letter(25), letter(26)
    ('A', 'Z', '27')
    """
    return chr(ord("A") + position) if position < 26 else str(position + 1)
