"""A program that compares answers with math-verify; `python -I math_worker.py`, without this package.

An expression such as 9**9**9**9 cannot be interrupted, so this process is ended instead. Arguments: the parent's import
path as JSON, and megabytes. It writes `ready`, then per line `[reference, text]` of JSON one of `1`, `0` and `null`.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
from typing import Any


def main() -> None:
    """Answer until the input ends."""
    sys.path[:] = json.loads(sys.argv[1])
    memory = int(sys.argv[2]) * 2**20
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    out = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what libraries print is not an answer
    import math_verify

    os.write(out, b"ready\n")
    for line in sys.stdin.buffer:
        reference, text = json.loads(line)
        os.write(out, _compare(math_verify, reference, text) + b"\n")


def _compare(math_verify: Any, reference: str, text: str) -> bytes:
    try:
        known = math_verify.parse(reference, parsing_timeout=None)
        if not known:
            return b"null"
        found = math_verify.parse(text, parsing_timeout=None)
        return b"1" if math_verify.verify(known, found, timeout_seconds=None) else b"0"
    except Exception:  # of the parser, or of sympy, about a text that a policy has written
        return b"0"


if __name__ == "__main__":
    main()
