"""What requests to a server have in common: which errors pass, what a server says about them, and no redirects."""

from __future__ import annotations

import contextlib
import logging
import math
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from datetime import timezone
from email.utils import parsedate_to_datetime
from typing import Any

from rlhf_lightning.errors import UserError
from rlhf_lightning.secret_text import shown

TEMPORARY = {408, 409, 425, 429, 500, 502, 503, 504, 529}  # statuses after which a request is repeated
LONGEST_WAIT = 60.0  # seconds between two attempts, if the server names no time
LONGEST_ASKED = 3600.0  # seconds that a server may ask to wait

log = logging.getLogger(__name__)


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


@dataclass
class Wait:
    """The wait before a request is repeated: the time that the server names, or twice the previous wait.

    Args:
        seconds: the next wait, if the server names no time.
        asked: the least that the server asks for.
    """

    seconds: float
    asked: float = 0.0

    def heed(self, who: str, error: urllib.error.HTTPError) -> None:
        """Note the time that a server names, and say so if that is long.

        Raises:
            UserError: it asks for more than an hour; `who` begins the message.
        """
        self.asked = retry_after(error)
        if self.asked > LONGEST_ASKED:
            raise UserError(
                f"{who}: it asks to wait {self.asked:.0f} s (HTTP {error.code}), longer than {LONGEST_ASKED:.0f} s; "
                "run the same command again later"
            )
        if self.asked > LONGEST_WAIT:
            log.warning(f"{who}: it asks to wait {self.asked:.0f} s (HTTP {error.code}); waiting")

    def next(self) -> float:
        """Return the seconds to wait now."""
        now = max(self.asked, min(self.seconds, LONGEST_WAIT))
        self.seconds, self.asked = 2 * now, 0.0
        return now


def retry_after(error: urllib.error.HTTPError) -> float:
    """Return the seconds that a server asks to wait, given as such or as a date; 0 if it says nothing that is either.

    A date is compared with the answer's own, so that the two clocks need not agree.
    """
    given = str(error.headers.get("Retry-After", ""))
    try:
        seconds = float(given)
    except ValueError:
        until = _moment(given)
        seconds = 0.0 if until is None else until - (_moment(str(error.headers.get("Date", ""))) or time.time())
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0


def _moment(date: str) -> float | None:
    """Return the seconds since 1970 of a date as HTTP writes it; None for any other text."""
    try:
        found = parsedate_to_datetime(date)
        return (found if found.tzinfo else found.replace(tzinfo=timezone.utc)).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None
