"""glibc's per-thread caches, without which a process that trains on a CPU does better.

Tensors are aligned. What alignment cuts off at the ends of a block waits in these caches once it is freed, and the free
blocks on both sides of it are not merged: the process grows by memory that nothing uses.

glibc reads the setting when a process starts. So a command restarts once, in the same process and before slow imports.
"""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

from rlhf_lightning.config.devices import GPUS
from rlhf_lightning.stopping import kept_back

OFF = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=0"}


def restart_without_thread_caches(command: str) -> None:
    """Restart this process with the caches off, if it is a run of the script `command` (its file's name).

    Return if there is nothing to do: on a machine with a GPU, with another C library, if `GLIBC_TUNABLES` is set, by
    the user or by the restart, or if Python was started in another way, for example under a debugger.
    """
    script = Path(sys.orig_argv[1]).name if len(sys.orig_argv) > 1 else ""
    if script != command or platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in OFF):
        return
    if not any(gpu.exists() for gpu in GPUS):
        os.environ.update(OFF)
        with kept_back():
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
