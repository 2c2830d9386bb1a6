"""Who may see and send what: sessions, forms from other sites, host names, headers of every response.

A session is a cookie that scripts cannot read: the labeler's token or, on the local machine without tokens, the
labeler's name and a random number. A form's token is a hash of the cookie, so pages of other sites do not know it, and
a restarted server accepts the forms of its predecessor.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response

from rlhf_lightning.errors import UserError
from rlhf_lightning.feedback.records import Labeler
from rlhf_lightning.feedback.store import FeedbackStore

LABELER, OWNER = "rlhf_labeler", "rlhf_owner"  # cookies
_MONTH = 30 * 24 * 3600
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a server bound to the host.

    >>> is_loopback("localhost"), is_loopback("127.0.0.2"), is_loopback("::1"), is_loopback("0.0.0.0")
    (True, True, True, False)
    """
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def is_local(host: str, url: str | None) -> bool:
    """Return whether only this machine reaches a server bound to the host, also by the address in front of it.

    >>> is_local("127.0.0.1", None), is_local("127.0.0.1", "https://label.example.org")
    (True, False)
    >>> is_local("0.0.0.0", "http://localhost:8000")
    False
    """
    return is_loopback(host) and (url is None or is_loopback(urlsplit(url).hostname or ""))


@dataclass(frozen=True)
class Access:
    """The access rules of one server.

    Args:
        store: has the labelers.
        host: the host that the server is bound to.
        tokens: whether a labeler needs a token.
        owner_token: what the owner's page needs; None: nothing, but the page exists only if no tokens are needed.
        url: the address by which browsers reach the server, if it is another one: a proxy's, for example.
    """

    store: FeedbackStore
    host: str
    tokens: bool
    owner_token: str | None
    url: str | None = None

    def __post_init__(self) -> None:
        if not self.tokens and not is_local(self.host, self.url):
            place = f"url: {self.url}" if is_loopback(self.host) else f"host: {self.host}"
            raise UserError(f"{place} can be reached from other machines; labelers need tokens there")

    def labeler(self, request: Request) -> Labeler | None:
        """Return the labeler whose session a request belongs to."""
        session = request.cookies.get(LABELER, "")
        if self.tokens:
            return self.store.labeler_of_token(session) if session else None
        return self._person(session.rpartition(":")[0])

    def labeler_of_link(self, request: Request, end: str) -> Labeler | None:
        """Return who enters by a link: by token, or on the local machine by name, unless another site sends them."""
        if (labeler := self.store.labeler_of_token(end)) is not None or self.tokens or is_foreign(request):
            return labeler
        return self._person(end)

    def people(self) -> list[Labeler]:
        """Return those who may enter by name: not models, in whose place nobody answers."""
        return [labeler for labeler in self.store.labelers() if labeler.kind == "person"]

    def _person(self, name: str) -> Labeler | None:
        return next((labeler for labeler in self.people() if labeler.name == name), None)

    def is_owner(self, request: Request) -> bool:
        """Return whether a request may see the owner's page."""
        if self.owner_token is None:
            return not self.tokens
        return _same(request.cookies.get(OWNER, ""), self.owner_token)

    def is_owner_token(self, token: str) -> bool:
        """Return whether a link is the owner's."""
        return self.owner_token is not None and _same(token, self.owner_token)

    def begin(self, request: Request, response: Response, cookie: str, session: str) -> None:
        """Start a browser's session."""
        response.set_cookie(
            cookie, session, max_age=_MONTH, httponly=True, samesite="lax", secure=request.url.scheme == "https"
        )

    def is_known_host(self, request: Request) -> bool:
        """Return whether a request names this machine: on a local server, a foreign name means DNS rebinding."""
        try:
            name = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
        except ValueError:
            return False
        return not is_local(self.host, self.url) or is_loopback(name)

    def is_own_form(self, request: Request, token: str) -> bool:
        """Return whether a form was sent from a page of this server in this session."""
        origin = request.headers.get("origin")
        own = origin is None or origin.partition("://")[2] == request.headers.get("host")
        if not own and self.url is not None:  # a proxy may replace the host's name
            own = _origin(str(origin)) == _origin(self.url)
        if not own or is_foreign(request):
            return False
        return bool(request.cookies.get(LABELER)) and _same(token, form_token(request))


def is_foreign(request: Request) -> bool:
    """Return whether a page of another site sent a request, as far as the browser says."""
    return request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none")


def form_token(request: Request) -> str:
    """Return the token that a form of this session carries."""
    session = request.cookies.get(LABELER, "")
    return hmac.new(session.encode("utf-8", "replace"), b"form", hashlib.sha256).hexdigest()


def new_session(name: str) -> str:
    """Return a session on the local machine, where no tokens are needed."""
    return f"{name}:{secrets.token_urlsafe(24)}"


def _origin(address: str) -> tuple[str, str | None, int | None] | None:
    """Return the scheme, host and port of an address; None if it has none."""
    try:
        parts = urlsplit(address)
        return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return None


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode("utf-8", "replace"), other.encode("utf-8", "replace"))
