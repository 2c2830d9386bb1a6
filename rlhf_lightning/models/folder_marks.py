"""Telling model folders apart without reading them completely."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from rlhf_lightning.hashes import ILQL_HEADS

BLOCKS, BLOCK = 64, 1 << 14  # number and bytes of the pieces read from each weight file
_WEIGHTS = (".safetensors", ".bin")
_SETTINGS = (".json", ".jinja", ".model", ".txt")
_OF_THE_WRITING = ("hashes.json",)  # redundant: describes the same files


def folder_mark(folder: str | Path) -> str | None:
    """Return a hash of a folder's files: all of the settings and tokenizer, the size and pieces of the weights.

    ILQL's heads count as weights, because a policy decodes by them. Another training run changes nearly every number of
    the weights. None if there is no such folder: a hub name.
    """
    root = Path(folder)
    if not root.is_dir():
        return None
    digest = hashlib.sha256()
    files = sorted(path for path in root.iterdir() if path.is_file() and path.name not in _OF_THE_WRITING)
    for file in [*files, *(path for path in [root / ILQL_HEADS] if path.is_file())]:
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
