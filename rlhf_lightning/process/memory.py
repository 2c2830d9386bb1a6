"""What a command sets for the memory of its own process, where networks compute on a CPU. A library call sets nothing.

Each can be switched off by a variable of the user's: see docs/kernels.md.
"""

from __future__ import annotations

import ctypes
import os
import sys

from rlhf_lightning.config.devices import GPUS

# glibc's parameters (malloc.h), the variables that set them from outside, and values in bytes.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
KEPT = {
    TRIM_THRESHOLD: ("MALLOC_TRIM_THRESHOLD_", 2**30),
    MMAP_THRESHOLD: ("MALLOC_MMAP_THRESHOLD_", 2**25),  # the largest that glibc takes
}
# oneDNN compiles a product for every shape (a millisecond, half a megabyte) and keeps the last ones; two caches, each
# with 1,024 by default. The layers of one pass have a dozen shapes.
CACHES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128", "LRU_CACHE_CAPACITY": "128"}


def settle_memory() -> None:
    """Call before torch is imported. Nothing changes on a machine with a GPU."""
    if not any(gpu.exists() for gpu in GPUS):
        keep_freed_memory()
        for name, value in CACHES.items():
            os.environ.setdefault(name, value)


def keep_freed_memory() -> None:
    """Let this process keep up to 1 GiB of what tensors free, in blocks of up to 32 MiB each.

    glibc gives freed memory at the end of its heap back to the system, and the next step gets it page by page, each
    one cleared. The peak is the same. Nothing changes where either variable of the user's is set, or with another C
    library. See mallopt(3).
    """
    if sys.platform != "linux" or any(name in os.environ for name, _ in KEPT.values()):
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        for parameter, (_, size) in KEPT.items():
            library.mallopt(parameter, size)
