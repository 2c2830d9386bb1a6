"""A worker's side of the conversation: one JSON request per line on standard input, one JSON answer per line."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

Handler = Callable[..., dict[str, Any]]


def answer(handlers: dict[str, Handler]) -> None:
    """Answer requests `{"do": name, ...}` until there are no more, with what the handler of that name returns.

    What the libraries print goes to standard error: standard output carries answers only.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        reply = handlers[request.pop("do")](**request)
        print(json.dumps(reply), file=answers, flush=True)
