"""Memory settings of a command's own process for networks on a CPU. Library calls set nothing.

Each can be switched off by an environment variable: see docs/kernels.md.
"""

from __future__ import annotations

import ctypes
import os
import sys

from rlhf_lightning.config.devices import GPUS

# glibc's parameters (malloc.h), the environment variables that set them, and values in bytes.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
KEPT = {
    TRIM_THRESHOLD: ("MALLOC_TRIM_THRESHOLD_", 2**30),
    MMAP_THRESHOLD: ("MALLOC_MMAP_THRESHOLD_", 2**25),  # glibc's maximum
}
# oneDNN compiles a product for every shape (a millisecond, half a megabyte) and caches the last ones, in two caches of
# 1,024 by default. The layers of one pass have a dozen shapes.
CACHES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128", "LRU_CACHE_CAPACITY": "128"}


def settle_memory() -> None:
    """Set them; call this before torch is imported. Nothing changes on a machine with a GPU."""
    if not any(gpu.exists() for gpu in GPUS):
        keep_freed_memory()
        for name, value in CACHES.items():
            os.environ.setdefault(name, value)


def keep_freed_memory() -> None:
    """Let this process keep up to 1 GiB of memory that tensors free, in blocks of up to 32 MiB each.

    glibc returns freed memory at the end of its heap to the system, and the next step gets it back page by page, each
    one cleared. The peak is the same. Nothing changes if the user sets either variable, or with another C library. See
    mallopt(3).
    """
    if sys.platform != "linux" or any(name in os.environ for name, _ in KEPT.values()):
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        for parameter, (_, size) in KEPT.items():
            library.mallopt(parameter, size)
