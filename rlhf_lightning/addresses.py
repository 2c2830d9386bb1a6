"""Addresses of servers: what waiting for an answer cannot correct is refused before anything is sent."""

from __future__ import annotations

from urllib.parse import urlsplit

from rlhf_lightning.errors import UserError
from rlhf_lightning.outside_text import on_one_line
from rlhf_lightning.secret_text import shown


def check_address(key: str, address: str, instead_of_password: str | None = None) -> None:
    """Raise UserError for something that is not the address of a server.

    A port above 65535 would otherwise reach another port: sockets take it modulo 65536.

    Args:
        key: where it was given, such as `reward.url`.
        address: what was given.
        instead_of_password: how to log in, for a client that sends no user and password of the address; None: it does.

    Raises:
        UserError: the scheme, the host, the port, the path or a user and password in it cannot be used.
    """
    found = f'{key}: found "{on_one_line(shown(address))}"'
    if (why := fault(address)) is not None:
        raise UserError(f"{found}; {why}")
    if instead_of_password is not None and "@" in urlsplit(address).netloc:
        raise UserError(
            f"{found}; a user and password in the address are not sent; leave them out, and {instead_of_password}"
        )


def fault(address: str) -> str | None:
    """Return what is wrong with the address of a server, and what is allowed; None if nothing is.

    >>> fault("http://localhost:73713/score")
    'its port must be a number from 1 to 65535'
    """
    if not address.lower().startswith(("http://", "https://")):
        return "must begin with http:// or https://"
    if not address.isprintable() or any(c.isspace() for c in address):
        return "must have no spaces or line breaks; write a space as %20"
    try:
        parts = urlsplit(address)
        host = parts.hostname
    except ValueError:  # brackets that do not enclose an IPv6 address; its text may hold a password
        return "must be http(s)://host:port/path"
    try:
        port_exists = parts.port is None or parts.port > 0
    except ValueError:
        port_exists = False
    if not port_exists:
        return "its port must be a number from 1 to 65535"
    if not host:
        return "must be http(s)://host:port/path; the host is missing"
    try:
        host.encode("idna")
    except UnicodeError:
        return f"{host!r} is not the name of a host"
    if not f"{parts.path}{parts.query}".isascii():
        return "its path must be in ASCII; write other characters in percent encoding, such as %C3%A9 for \u00e9"
    if parts.fragment:
        return "what follows # is not sent; leave it out"
    return None
