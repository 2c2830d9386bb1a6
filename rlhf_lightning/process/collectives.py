"""Letting gloo's threads finish before a process of several ends."""

from __future__ import annotations

import sys
import time

_MOMENT = 0.1  # seconds; such a thread needs microseconds, once it may run


def let_collectives_end() -> None:
    """Wait a moment, without holding the interpreter's lock, if this process has joined others.

    A thread of gloo takes that lock to free the tensors of a finished collective. Until Python 3.14, a thread that
    asks for it while the interpreter ends is unwound through C++, which aborts the process with code -6: a command
    that had ended well, or with its one line and code 2, would look as if it had crashed.
    """
    if "torch.distributed" not in sys.modules:
        return
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        time.sleep(_MOMENT)
