"""What requests to a server have in common: which errors pass, and what a server says about them."""

from __future__ import annotations

import contextlib
import urllib.error

TEMPORARY = {408, 409, 425, 429, 500, 502, 503, 504, 529}  # statuses after which a request is repeated
LONGEST_WAIT = 60.0  # seconds between two attempts


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
