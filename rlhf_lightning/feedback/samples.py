"""Policies' responses, kept in the store so that an interrupted collection does not sample them again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import select

from rlhf_lightning.feedback.schema import damaged, samples
from rlhf_lightning.feedback.store import FeedbackStore

_AT_ONCE = 500  # keys per query


@dataclass(frozen=True)
class Said:
    """A policy's response, and whether the policy ended it."""

    text: str
    ended: bool


def known_samples(store: FeedbackStore, keys: Sequence[str]) -> set[str]:
    """Return the keys that exist."""
    found: set[str] = set()
    with store.reading() as connection:
        for start in range(0, len(keys), _AT_ONCE):
            part = keys[start : start + _AT_ONCE]
            found |= set(connection.scalars(select(samples.c.key).where(samples.c.key.in_(part))))
    return found


def read_samples(store: FeedbackStore, keys: Sequence[str]) -> dict[str, list[Said]]:
    """Return the responses of existing keys, for at most a few hundred keys.

    Raises:
        UserError: a row is damaged.
    """
    with store.reading() as connection:
        rows = connection.execute(select(samples).where(samples.c.key.in_(keys))).all()
    found = {}
    for row in rows:
        try:
            found[row.key] = [Said(text, ended) for text, ended in json.loads(row.responses)]
        except (ValueError, TypeError) as error:
            raise damaged(f"sample {row.key}", error) from error
    return found


def keep_samples(store: FeedbackStore, new: Mapping[str, Sequence[Said]]) -> None:
    """Add responses whose key does not exist yet; once this has returned, they are on disk."""
    with store.changing() as connection:
        there = set(connection.scalars(select(samples.c.key).where(samples.c.key.in_(list(new)))))
        rows = [
            {"key": key, "responses": json.dumps([[said.text, said.ended] for said in responses])}
            for key, responses in new.items()
            if key not in there
        ]
        if rows:
            connection.execute(samples.insert(), rows)
