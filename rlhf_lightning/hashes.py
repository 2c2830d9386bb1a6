"""Hashes of the files that a later stage, a resume or another command reads, to detect changes on disk.

A folder that this package writes completely (`model/`, an export, a finished run, a simulated world) has a
`hashes.json`:

    {"files": {"config.json": {"size": 612, "sha256": "9f2c..."}, ...}, "sha256": "51ab..."}

The last hash is that of `files` as JSON with sorted keys, so that damage to `hashes.json` itself is detected too. A
folder without that file, such as one from Hugging Face, is read as it is. Needs no torch: small files are checked
before it is imported, weights when they are loaded.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from rlhf_lightning.durable import write_text_durably
from rlhf_lightning.errors import UserError, named
from rlhf_lightning.file_hashes import LARGE, hashes_of, sha256_of

FILE = "hashes.json"
CARD = "README.md"  # a model card is meant to be edited
ILQL_HEADS = "ilql/heads.safetensors"  # beside a model; in a folder of its own, since loaders read every such file
_WEIGHTS = (".safetensors", ".bin")
# Extensions that the loaders of transformers and peft look for, under names derived from a folder's content.
_READ = (*_WEIGHTS, ".json", ".jinja", ".model", ".txt", ".py")
_LONGEST = 1 << 24  # most bytes of a hashes.json


def write_hashes(folder: str | Path, names: Collection[str] | None = None) -> None:
    """Write `hashes.json`, as the last file of a folder.

    Args:
        folder: the folder whose files it lists.
        names: the files to list, if they exist; None: all but the model card and hidden files.
    """
    root = Path(folder)
    (root / FILE).unlink(missing_ok=True)
    files = _files(root) if names is None else (name for name in names if (root / name).is_file())
    write_text_durably(root / FILE, _text(hashes_of(root, files)))


def forget_hashes(folder: str | Path) -> None:
    """Remove `hashes.json`: the files are about to change."""
    (Path(folder) / FILE).unlink(missing_ok=True)


def check_model_files(folder: str | Path, weights: bool = False, key: str | None = None) -> None:
    """Check that a model's folder is unchanged, and has no additional file that would be read.

    Args:
        folder: of a model, an adapter or a tokenizer; a hub name or a folder without `hashes.json` passes.
        weights: hash the weights as well; False: only check their sizes.
        key: where the user named the folder; None: `errors.named`.

    Raises:
        UserError: the first file that has changed, is missing, or is new.
    """
    root = Path(folder)
    key = named() if key is None else key
    listed = read_hashes(root, key)
    if listed is None:
        return
    _check(root, listed, key, weights)
    for path in _extra(root, listed):
        raise UserError(
            f"{key}: {path} did not exist when {FILE} was written, but would be read; remove it, or delete "
            f"{root / FILE} to take the folder as it is"
        )


@contextlib.contextmanager
def checking_weights(folder: str | Path) -> Iterator[None]:
    """Run `check_model_files` with the weights, in a thread, while the block loads them.

    Raises:
        UserError: as in `check_model_files`; it replaces any error that a changed file caused in the block.
    """
    check_model_files(folder)
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(check_model_files, folder, True, named())
        try:
            yield
        finally:
            pending.result()


def check_files(folder: str | Path, names: Collection[str] | None = None, key: str | None = None) -> None:
    """Check that files of a folder have not changed since its `hashes.json` was written; without one they pass.

    Args:
        folder: folder of a finished run, or a world.
        names: the files to check; None: all that are listed.
        key: the key to blame; None: only the file.

    Raises:
        UserError: the first file that has changed or is missing.
    """
    root = Path(folder)
    listed = read_hashes(root, key)
    if listed is not None:
        _check(root, {n: entry for n, entry in listed.items() if names is None or n in names}, key, weights=True)


def read_hashes(folder: Path, key: str | None = None) -> dict[str, dict[str, Any]] | None:
    """Return name -> size and SHA-256 of a folder's files; None without a `hashes.json`.

    Raises:
        UserError: it is not byte for byte what `write_hashes` writes.
    """
    file = folder / FILE
    if not file.is_file() and not file.is_symlink():
        return None
    try:
        with file.open("rb") as opened:
            text = opened.read(_LONGEST).decode("utf-8")
        files: dict[str, dict[str, Any]] = json.loads(text)["files"]
        whole = text == _text(files) and all(_is_entry(name, entry) for name, entry in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise UserError(
            f"{_prefix(key)}{file} is damaged; restore it, or delete it to take the folder as it is, without a check"
        )
    return files


def _check(root: Path, listed: dict[str, dict[str, Any]], key: str | None, weights: bool) -> None:
    accept = f"restore it, or delete {root / FILE} to take the folder as it is"
    for name, entry in listed.items():
        path = root / name
        if not path.is_file():
            raise UserError(f"{_prefix(key)}{path} is missing; {accept}")
        size = path.stat().st_size
        same = size == entry["size"]
        if same and (weights or path.suffix not in _WEIGHTS) and not (size >= LARGE and another_process_checks()):
            same = sha256_of(path) == entry["sha256"]
        if not same:
            raise UserError(f"{_prefix(key)}{path} has changed since it was written; {accept}")


def another_process_checks() -> bool:
    """Return whether another process on this machine hashes large files: the first one does it for all."""
    numbers = (os.environ.get(name) for name in ("LOCAL_RANK", "SLURM_LOCALID"))
    return next((number for number in numbers if number), "0") != "0"


def _extra(root: Path, listed: Collection[str]) -> Iterator[Path]:
    """Yield files that a loader may read, and that are not listed."""
    for path in sorted([*root.iterdir(), *root.glob("*chat_templates/*")]):
        name = path.relative_to(root).as_posix()
        if path.suffix in _READ and name not in (FILE, *listed) and not name.startswith(".") and not path.is_dir():
            yield path


def _files(root: Path) -> Iterator[str]:
    for path in root.rglob("*"):
        parts = path.relative_to(root).parts
        if path.is_file() and parts != (CARD,) and not any(part.startswith(".") for part in parts):
            yield "/".join(parts)


def _is_entry(name: str, entry: dict[str, Any]) -> bool:
    """Return whether a name stays inside the folder, and has a size and a hash."""
    inside = not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts
    return inside and isinstance(entry["size"], int) and isinstance(entry["sha256"], str)


def _text(files: dict[str, dict[str, Any]]) -> str:
    own = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    return json.dumps({"files": files, "sha256": own}, indent=2) + "\n"


def _prefix(key: str | None) -> str:
    return "" if key is None else f"{key}: "
