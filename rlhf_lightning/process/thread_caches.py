"""glibc's caches by thread, which a process that trains on a CPU is better without.

Tensors are aligned. What is cut off for that at a block's ends waits in these caches once it is freed, and the free
blocks on both sides of it are not joined: the process grows by memory that nothing uses.

glibc reads the setting when a process starts. So a command starts over, once, in the same process and before it has
imported what takes time.
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
    """Start this process over with the caches off, if it is a run of the script `command` (its file's name).

    Returns where there is nothing to do: on a machine with a GPU, with another C library, where `GLIBC_TUNABLES` is
    set, by the user or by the restart, and where Python was started in another way, under a debugger for example.
    """
    script = Path(sys.orig_argv[1]).name if len(sys.orig_argv) > 1 else ""
    if script != command or platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in OFF):
        return
    if not any(gpu.exists() for gpu in GPUS):
        os.environ.update(OFF)
        with kept_back():
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
