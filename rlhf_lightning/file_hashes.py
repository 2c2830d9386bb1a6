"""SHA-256 of files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

BLOCK = 1 << 24
LARGE = 1 << 26  # bytes above which a hash is cached: it takes 0.05 to 0.2 s
_KNOWN: dict[tuple[str, int, int, int, int, int], str] = {}  # file state -> its hash, in this process


def sha256_of(path: Path) -> str:
    """Return the hash of a file; a large file's is cached in this process for as long as the file is unchanged."""
    stat = path.stat()
    key = (str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_dev)
    if key in _KNOWN:
        return _KNOWN[key]
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    if stat.st_size >= LARGE:
        _KNOWN[key] = digest.hexdigest()
    return digest.hexdigest()


def hashes_of(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return name -> size and hash of files in a folder, computed in parallel if there are several cores."""
    names = sorted(names)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        hashes = list(pool.map(lambda name: sha256_of(folder / name), names))
    return {
        name: {"size": (folder / name).stat().st_size, "sha256": digest}
        for name, digest in zip(names, hashes, strict=True)
    }
