"""What tells a model's folder from another one without reading all of it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

BLOCKS, BLOCK = 64, 1 << 14  # of a file of weights: so many pieces of so many bytes are read
_WEIGHTS = (".safetensors", ".bin")
_SETTINGS = (".json", ".jinja", ".model", ".txt")
_OF_THE_WRITING = ("hashes.json",)  # says the same of the same files


def folder_mark(folder: str | Path) -> str | None:
    """Return a hash of a folder's files: settings and tokenizer whole, of weights their size and pieces of them.

    Another training run changes nearly every number of the weights. None where there is no such folder: a hub name.
    """
    root = Path(folder)
    if not root.is_dir():
        return None
    digest = hashlib.sha256()
    for file in sorted(path for path in root.iterdir() if path.is_file() and path.name not in _OF_THE_WRITING):
        if file.suffix in (*_WEIGHTS, *_SETTINGS):
            digest.update(f"{file.name} {file.stat().st_size}\n".encode(errors="surrogateescape"))
            for piece in _pieces(file, whole=file.suffix in _SETTINGS):
                digest.update(piece)
    return digest.hexdigest()


def _pieces(file: Path, whole: bool) -> list[bytes]:
    if whole:
        return [file.read_bytes()]
    size = file.stat().st_size
    with file.open("rb") as content:
        pieces = []
        for number in range(BLOCKS):
            content.seek(max(0, size - BLOCK) * number // (BLOCKS - 1), os.SEEK_SET)
            pieces.append(content.read(BLOCK))
        return pieces
