"""The personal links through which labelers enter the page."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from urllib.parse import quote

from sqlalchemy import select

from rlhf_lightning.errors import UserError
from rlhf_lightning.feedback.schema import labelers
from rlhf_lightning.feedback.store import FeedbackStore


def labeler_links(
    store: FeedbackStore, names: Collection[str], address: str, tokens: bool, renew: Iterable[str] = ()
) -> dict[str, str | None]:
    """Add missing labelers, and return each one's link; None: the link that was given before is still valid.

    A link with a token is created once, since the store keeps only the token's hash; it stays valid when the server
    restarts. On the local machine, where no tokens are needed, a link has the name instead.

    Args:
        store: has the labelers.
        names: names of people.
        address: what links begin with.
        tokens: whether labelers need a token.
        renew: names whose previous link must stop working.

    Raises:
        UserError: an invalid name, or one that a model has, whose answers a person's would be taken for.
    """
    with store.reading() as connection:
        rows = connection.execute(select(labelers.c.name, labelers.c.kind, labelers.c.token_hash)).all()
    kinds = {row.name: row.kind for row in rows}
    for name in names:
        if (kind := kinds.get(name, "person")) != "person":
            raise UserError(f"labelers: {name} is known as a {kind}; choose another name for a person")
    has_token = {row.name: row.token_hash is not None for row in rows}
    links: dict[str, str | None] = {}
    for name in dict.fromkeys(names):
        if not tokens:
            if name not in has_token:
                store.add_labeler(name, link=False)
            links[name] = f"{address}/enter/{quote(name)}"
        elif has_token.get(name) and name not in renew:
            links[name] = None
        else:
            links[name] = f"{address}/enter/{store.add_labeler(name)}"
    return links
