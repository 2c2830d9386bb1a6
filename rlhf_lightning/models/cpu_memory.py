"""Memory of tensors in main memory: what one training step frees, the next one takes."""

from __future__ import annotations

import ctypes
import functools
import os
import sys

import torch

# glibc's parameters (malloc.h), the variables that set them from outside, and values in bytes.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
KEPT = {
    TRIM_THRESHOLD: ("MALLOC_TRIM_THRESHOLD_", 2**30),
    MMAP_THRESHOLD: ("MALLOC_MMAP_THRESHOLD_", 2**25),  # the largest that glibc takes
}


@functools.cache
def keep_freed_memory() -> None:
    """Let this process keep up to 1 GiB of what tensors free, in blocks of up to 32 MiB each.

    glibc gives freed memory at the end of its heap back to the system, and the next step gets it page by page, each
    one cleared. The peak is the same. Nothing changes where a GPU trains,
    where either variable of the user's is set, or with another C library. See mallopt(3).
    """
    if torch.cuda.is_available() or sys.platform != "linux" or any(name in os.environ for name, _ in KEPT.values()):
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        for parameter, (_, size) in KEPT.items():
            library.mallopt(parameter, size)
