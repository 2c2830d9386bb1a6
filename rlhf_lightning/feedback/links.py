"""The personal links by which labelers enter the page."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import quote

from sqlalchemy import select

from rlhf_lightning.feedback.schema import labelers
from rlhf_lightning.feedback.store import FeedbackStore


def labeler_links(
    store: FeedbackStore, names: Iterable[str], address: str, tokens: bool, renew: Iterable[str] = ()
) -> dict[str, str | None]:
    """Add the labelers that are not there yet, and return how each enters; None: by the link that was given before.

    A link that holds a token is made once, since the store keeps the token's hash alone; whoever has it keeps it when
    the server starts again. On the own machine, where no tokens are needed, a link holds the name.

    Args:
        store: of the labelers.
        names: of people.
        address: what links begin with.
        tokens: labelers need a token.
        renew: names whose former link is to open nothing any more.

    Raises:
        UserError: a name cannot be taken.
    """
    with store.reading() as connection:
        rows = connection.execute(select(labelers.c.name, labelers.c.token_hash)).all()
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
