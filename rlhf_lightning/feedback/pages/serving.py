"""Serving the labelling page on a port: links for everybody, and one line for any problem."""

from __future__ import annotations

import errno
import secrets
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn

from rlhf_lightning.errors import UserError, blaming, reason
from rlhf_lightning.feedback.links import labeler_links
from rlhf_lightning.feedback.pages.access import is_local, is_loopback
from rlhf_lightning.feedback.pages.app import CRITERIA, FLAGS, make_app
from rlhf_lightning.feedback.progress import progress
from rlhf_lightning.feedback.store import FeedbackStore

_EVERYWHERE = ("0.0.0.0", "::")
_LAST_ANSWERS = 5  # seconds to finish open requests when the server stops


@dataclass(frozen=True)
class Serving:
    """What is served, and to whom.

    Args:
        labelers: names; empty: the people in the store.
        renew: names of those who get a new link.
        guidelines: Markdown; None: the default guidelines.
        criteria: criteria that may be scored.
        flags: flags that may be set.
        host: the host that the server is bound to; beyond this machine labelers need their links.
        port: 0 means any free port.
        url: what links begin with; None: host and port.
    """

    labelers: Sequence[str] = ()
    renew: Sequence[str] = ()
    guidelines: str | None = None
    criteria: Sequence[str] = field(default=CRITERIA)
    flags: Sequence[str] = field(default=FLAGS)
    host: str = "127.0.0.1"
    port: int = 8000
    url: str | None = None


def serve(store: FeedbackStore, serving: Serving, say: Callable[[str], object]) -> None:
    """Print the links and serve the page until the process is told to stop.

    Raises:
        UserError: the port or host is not available, or there are no labelers.
    """
    names = list(serving.labelers) or [each.name for each in store.labelers() if each.kind == "person"]
    if not names:
        raise UserError("labelers: none given, and none in the store; give labelers=[ana,bo]")
    if unknown := [name for name in serving.renew if name not in names]:
        raise UserError(f"renew: {unknown[0]} is not among the labelers ({', '.join(names)})")
    with _bound(serving.host, serving.port) as listening:
        bound, port = listening.getsockname()[:2]
        host = bound if is_loopback(serving.host) else serving.host  # a name may stand for another address
        tokens = not is_local(host, serving.url)
        owner = secrets.token_urlsafe(24) if tokens else None
        address = serving.url or _address(serving.host, port)
        links = labeler_links(store, names, address, tokens, serving.renew)
        app = make_app(
            store,
            serving.guidelines,
            host=host,
            url=serving.url,
            tokens=tokens,
            owner_token=owner,
            criteria=serving.criteria,
            flags=serving.flags,
        )
        width = max(map(len, [*names, "owner"]))
        for name, link in links.items():
            say(f"{name:<{width}}  {link or f'with the previous link (renew=[{name}] makes a new one)'}")
        say(f"{'owner':<{width}}  {address}/owner{'' if owner is None else f'/enter/{owner}'}")
        if not progress(store).tasks:
            say(f"note: there are no tasks in {store.name} yet; rlhf-collect adds them, also while this runs")
        say("serving until Ctrl-C")
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=_LAST_ANSWERS
        )
        uvicorn.Server(config).run(sockets=[listening])


def read_guidelines(file: str) -> str:
    """Return the Markdown of a file.

    Raises:
        UserError: there is none, or it is not text.
    """
    if not Path(file).is_file():
        raise UserError(f"guidelines: {file} is not a file; give a Markdown file, or leave it out for the default ones")
    with blaming(f"guidelines: {file} cannot be read", "save it as UTF-8"):
        text = Path(file).read_text(encoding="utf-8-sig")
    if not text.strip():
        raise UserError(f"guidelines: {file} is empty; write what labelers should look for, or leave it out")
    return text


def _bound(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise UserError(f"host: {host}: {reason(error)}; give the name or number of an interface here") from error
    opened = socket.socket(family, kind, protocol)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(place)
        opened.listen()
    except OSError as error:
        opened.close()
        if error.errno == errno.EADDRINUSE:
            raise UserError(
                f"port: {port} is in use on {host}; choose another, such as port={port % 65535 + 1}"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM):
            raise UserError(f"port: {port} may not be used ({reason(error)}); choose one above 1023") from error
        raise UserError(f"host: {host}: {reason(error)}; give the name or number of an interface here") from error
    return opened


def _address(host: str, port: int) -> str:
    name = socket.gethostname() if host in _EVERYWHERE else host
    return f"http://{f'[{name}]' if ':' in name and not name.startswith('[') else name}:{port}"
