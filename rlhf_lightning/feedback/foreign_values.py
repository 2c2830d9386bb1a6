"""Values in the files of other labelling tools: lists and objects of JSON, and the users who answered."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rlhf_lightning.errors import UserError
from rlhf_lightning.feedback.records import LABELER_KINDS, STRONGEST, Answer


class Users:
    """The labelers that stand for another tool's users, a different one for each.

    Args:
        known: a user's id -> the labeler's name; other users are named by their e-mail address, or else by their id.
    """

    def __init__(self, known: Mapping[str, str] | None = None) -> None:
        self._known = known or {}
        self._users: dict[str, str] = {}  # name -> user

    def labeler(self, user: Any, where: str) -> str:
        """Return the labeler's name.

        Raises:
            UserError: it is not the id of a user, or another user has the name.
        """
        found = user.get("email") or user.get("id") if isinstance(user, dict) else user
        if isinstance(found, bool) or not isinstance(found, str | int) or not str(found).strip():
            raise UserError(
                f"{where}: the user of an answer must be an e-mail address or an id, found {user!r:.60}; name the user"
            )
        user = str(found)
        name = self._known.get(user) or re.sub(r"[^\w.@+-]", "-", user)[:64]
        if (other := self._users.setdefault(name, user)) != user:
            raise UserError(
                f"{where}: the users {other!r:.80} and {user!r:.80} would both be called {name:.64}; rename one of them"
            )
        return name


def with_strength(answer: Answer, names: Sequence[str], noted: Mapping[str, Any], where: str) -> Answer:
    """Return an answer with the strength noted for the response that it chooses, if there is one.

    Args:
        answer: may have been changed since the note was made.
        names: names of the responses.
        noted: name of a response -> the strength with which it was chosen.
        where: names the record in messages.

    Raises:
        UserError: the strength is not one.
    """
    strength = None if answer.choice is None else noted.get(names[answer.choice])
    if strength is None:
        return answer
    if type(strength) is not int or not 1 <= strength <= STRONGEST:
        raise UserError(f"{where}: the strength of a choice is a number from 1 to {STRONGEST}, found {strength!r:.60}")
    return replace(answer, strength=strength)


def as_labeler_kind(value: Any, where: str) -> str:
    """Return the kind of a labeler.

    Raises:
        UserError: it is anything else.
    """
    if value not in LABELER_KINDS:
        raise UserError(f"{where}: a labeler is one of {', '.join(LABELER_KINDS)}, found {value!r:.60}")
    return str(value)


def as_object(value: Any, where: str) -> Mapping[str, Any]:
    """Return a JSON object.

    Raises:
        UserError: it is anything else.
    """
    if not isinstance(value, dict):
        raise UserError(f"{where} must be an object, found {value!r:.60}")
    return value


def as_objects(value: Any, where: str) -> list[Mapping[str, Any]]:
    """Return a list of JSON objects; empty for null.

    Raises:
        UserError: it is anything else.
    """
    return [as_object(each, f"{where}: each entry") for each in as_list(value, where)]


def as_list(value: Any, where: str) -> list[Any]:
    """Return a JSON list; empty for null.

    Raises:
        UserError: it is anything else.
    """
    if value is not None and not isinstance(value, list):
        raise UserError(f"{where} must be a list, found {value!r:.60}")
    return value or []
