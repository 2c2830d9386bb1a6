"""The one exception that means: the user's input is wrong, and the message says how to mend it."""

from __future__ import annotations


class UserError(ValueError):
    """Bad input. The message is one line: the key (or file and line), what was found, what is allowed, the next step.

    The commands print it without a traceback and exit with code 2.
    """
