"""What the user is told when a tracking store does not take a run: one line per run, however often calls fail."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable

from rlhf_lightning.errors import reason
from rlhf_lightning.outside_text import on_one_line

log = logging.getLogger(__name__)

_LONGEST = 200
_PASSWORD = re.compile(r"(?<=://)[^/@\s'\"]+@")
_CAUSES = {  # part of an MLflow error -> what it means
    "Connection refused": "connection refused",
    "Connection reset": "connection reset",
    "Remote end closed": "connection closed",
    "Name or service not known": "unknown host",
    "Temporary failure in name resolution": "unknown host",
    "timed out": "timed out",
    "timeout exception": "timed out",
    "database is locked": "database is locked",
    "readonly database": "the database is read-only",
    "unable to open database file": "its file cannot be opened",
    "disk is full": "its disk is full",
    "not in a valid JSON format": "the answer is not MLflow's",
}
_STATUS = re.compile(r"(?:error code|too many) (\d{3})\b")


class Notice:
    """The messages of one run, or of a pipeline with its stages.

    Args:
        store: what the messages call the store, without a password.
        later: the command that sends what is missing.
        say: prints a line.
        clean: hides secrets.
    """

    def __init__(
        self,
        store: str,
        later: str = "",
        say: Callable[[str], object] = log.warning,
        clean: Callable[[str], str] = lambda text: _PASSWORD.sub("***@", text),
    ) -> None:
        self.store, self.later = clean(store), later
        self.error: Exception | None = None
        self.said_outage = self.said_refusal = False
        self.say, self._clean = say, clean

    def outage(self, what: str, error: Exception) -> None:
        """Say, once, that the store currently does not accept something."""
        if not self.said_outage:
            self.said_outage = True
            later = f", or later with {self.later}" if self.later else ""
            self.say(
                f"tracking: {self.store} does not take {what} ({self.why(error)}); the run continues, its folder has "
                f"everything, and what the store lacks is sent once it answers{later}"
            )

    def refusal(self, what: str, error: Exception) -> None:
        """Say, once, that the store will never accept something."""
        if not self.said_refusal:
            self.said_refusal = True
            self.say(
                f"tracking: {self.store} refuses {what} ({self.why(error)}); the run continues, its folder has "
                "everything, and what is refused is left out in the store"
            )

    def left(self, what: str) -> str:
        """Return the text about what was not sent by the end."""
        why = f" ({self.why(self.error)})" if self.error is not None else ""
        later = f"; send it with {self.later}" if self.later else ""
        return f"tracking: {self.store} did not receive {what}{why}{later}"

    def why(self, error: BaseException) -> str:
        """Return a short reason for an error."""
        text = " ".join(str(error).split())
        for mark, words in _CAUSES.items():
            if mark in text:
                return words
        if found := _STATUS.search(text):
            return f"error {found[1]}"
        return on_one_line(self._clean(reason(error, _LONGEST)))
