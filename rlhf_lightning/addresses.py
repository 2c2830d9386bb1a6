"""Addresses and keys of servers: refused where the user gives them if no request could be sent with them."""

from __future__ import annotations

import os
import re
from urllib.parse import urlsplit

from rlhf_lightning.errors import UserError
from rlhf_lightning.outside_text import on_one_line
from rlhf_lightning.secret_text import remember, shown

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+(?:%\w+)?\]|[\w.-]+)(?::(\d*))?", re.ASCII)
_LAST_PORT = 65535


def check_address(
    key: str,
    address: str,
    example: str = "http://localhost:8000",
    *,
    credentials: bool = False,
    query: bool = False,
    log_in: str | None = None,
) -> None:
    """Raise UserError unless requests can be sent to an address.

    A port above 65535 would reach another port: sockets take it modulo 65536.

    Args:
        key: where the user named it.
        address: begins with http:// or https://.
        example: an address as it must be.
        credentials: whether a user and password before the host are sent.
        query: whether parameters after a question mark are sent.
        log_in: what to do instead of giving a user and password that are not sent.
    """
    if fault := _fault(address, credentials, query, log_in):
        raise UserError(f'{key}: found "{on_one_line(shown(address))}"; {fault}; give an address such as {example}')


def _fault(address: str, credentials: bool, query: bool, log_in: str | None) -> str | None:
    """Return what is wrong with an address."""
    if not address.lower().startswith(("http://", "https://")):
        return "it must begin with http:// or https://"
    if not address.isascii() or not address.isprintable() or " " in address:
        return "it has spaces or letters beyond ASCII; use percent encoding, such as %20, and for a host xn--..."
    try:
        parts = urlsplit(address)
    except ValueError:  # an unclosed bracket
        return "its host, or its port, is not valid"
    _, at, host = parts.netloc.rpartition("@")
    found = _HOST.fullmatch(host)
    if found is None or not _is_name(found[1]):
        return "its host, or its port, is not valid"
    if found[2] and not 0 < int(found[2]) <= _LAST_PORT:
        return f"its port must be from 1 to {_LAST_PORT}"
    if at and not credentials:
        return "a user and password are not sent; leave them out" + (f", and {log_in}" if log_in else "")
    if not query and parts.query:
        return "nothing may follow after ?"
    if parts.fragment:
        return "what follows # is not sent; leave it out"
    return None


def _is_name(host: str) -> bool:
    """Return whether a host's labels have the lengths that names may have."""
    return host.startswith("[") or all(0 < len(label) < 64 for label in host.removesuffix(".").split("."))


def read_key(key: str, variable: str) -> str:
    """Return the key of a server from an environment variable; it is hidden wherever it would be shown.

    Args:
        key: where the user named the variable.
        variable: its name.

    Raises:
        UserError: it is not set, or a header cannot hold it.
    """
    found = os.environ.get(variable, "")
    if not found.strip():
        raise UserError(f"{key}: the environment variable {variable} is not set; export the key there")
    remember(found)
    if not found.isascii() or not found.isprintable() or " " in found:
        raise UserError(
            f"{key}: the environment variable {variable} holds spaces, line ends or letters beyond ASCII, which no key "
            "has; export the key alone"
        )
    return found
