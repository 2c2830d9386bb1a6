"""What requests to a server have in common: which errors pass, what a server says about them, and no redirects."""

from __future__ import annotations

import contextlib
import urllib.error
import urllib.request
from typing import Any

from rlhf_lightning.secret_text import shown

TEMPORARY = {408, 409, 425, 429, 500, 502, 503, 504, 529}  # statuses after which a request is repeated
LONGEST_WAIT = 60.0  # seconds between two attempts


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


OPENER = urllib.request.build_opener(_NoRedirects)


def redirected(error: urllib.error.HTTPError) -> str | None:
    """Return what to say about a redirect; None for another error."""
    if not 300 <= error.code < 400:
        return None
    return (
        f"it redirects to {shown(str(error.headers.get('Location')))} (HTTP {error.code}), which is not followed, so "
        "that nothing is sent elsewhere; give that address if it is the right one"
    )


def said(error: urllib.error.HTTPError) -> str:
    """Return the beginning of what a server answers with an error."""
    with contextlib.suppress(OSError):
        return " ".join(error.read(300).decode("utf-8", "replace").split()) or str(error.reason)
    return str(error.reason)


def retry_after(error: urllib.error.HTTPError) -> float:
    """Return the seconds that a server asks to wait; 0 if it says nothing."""
    try:
        return float(error.headers.get("Retry-After", 0))
    except (TypeError, ValueError):
        return 0.0
