"""SHA-256 of files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

BLOCK = 1 << 24
LARGE = 1 << 26  # bytes from which on a hash is remembered: 0.05 to 0.2 s to compute
_KNOWN: dict[tuple[str, int, int, int, int, int], str] = {}  # file as it is -> its hash, of this process


def sha256_of(path: Path) -> str:
    """The hash of a file; of a large one it is remembered in this process for as long as the file stays as it is."""
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
    """Name -> size and hash of files of a folder, several at a time where there are cores."""
    names = sorted(names)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        hashes = list(pool.map(lambda name: sha256_of(folder / name), names))
    return {
        name: {"size": (folder / name).stat().st_size, "sha256": digest}
        for name, digest in zip(names, hashes, strict=True)
    }
