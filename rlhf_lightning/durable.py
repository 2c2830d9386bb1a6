"""Files that survive a kill intact: written next to their target, synced, renamed; and manifests to verify them.

A checkpoint `last.ckpt` has a manifest `last.ckpt.manifest.json`. It lists the sizes and hashes that the file may have:
the one being saved and the previous one. It is written before the checkpoint is renamed into place, so that at every
moment the manifest knows the existing file, old or new: one rename decides, and no kill can fall between two. After the
rename the old entry is removed. Needs no torch: a broken checkpoint is detected before anything is loaded.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from rlhf_lightning.errors import writing
from rlhf_lightning.file_hashes import hashes_of, sha256_of
from rlhf_lightning.sharded_folders import what_a_folder_lacks
from rlhf_lightning.stopping import held

MANIFEST = ".manifest.json"


class HashingFile:
    """A file open for writing that hashes what passes through it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.size = 0

    def write(self, data: Any) -> int:
        self._hash.update(data)
        self.size += memoryview(data).nbytes
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def sha256(self) -> str:
        return self._hash.hexdigest()


Write = Callable[[Any], object]  # takes a HashingFile, which torch.save accepts as a file


def write_durably(path: Path, write: Write, before_rename: Write = lambda file: None) -> None:
    """Call `write` on a hidden file next to the target, sync it, call `before_rename`, and replace the target."""
    with held(), writing(path):
        _write_durably(path, write, before_rename)


def _write_durably(path: Path, write: Write, before_rename: Write) -> None:
    beside = _beside(path)
    try:
        with _new_file(beside) as file:
            hashing = HashingFile(file)
            write(hashing)
            file.flush()
            os.fsync(file.fileno())
        before_rename(hashing)
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)  # a full disk needs the room
        raise
    _sync_folder(path.parent)


def _new_file(path: Path) -> BinaryIO:
    """Open a new file; whatever exists at that name, even a link planted by someone else, is removed."""
    path.unlink(missing_ok=True)
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb")


def has_other_names(path: Path) -> bool:
    """Return whether a file is a link, or has another name as a hard link."""
    return path.is_symlink() or (path.is_file() and path.stat().st_nlink > 1)


def remove_tree(path: Path) -> None:
    """Remove a folder and its content, as far as possible; if it is a link, only the link."""
    if path.is_symlink() or path.is_file():
        with contextlib.suppress(OSError):
            path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def write_text_durably(path: Path, text: str) -> None:
    """Write a text so that a reader sees either all of the new text or all of the old one."""
    write_bytes_durably(path, text.encode())


def write_bytes_durably(path: Path, content: bytes) -> None:
    """Write bytes so that a reader sees either all of the new content or all of the old one."""
    write_durably(path, lambda file: file.write(content))


def append_durably(path: Path, text: str) -> None:
    """Append a text to a file, created if missing; if it cannot be written completely, the file stays unchanged.

    Links are not followed.

    Raises:
        DiskError: the disk does not accept it, or the file is a link.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
    data = memoryview(text.encode())
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, flags, 0o666)
        length = os.fstat(descriptor).st_size
        try:
            with os.fdopen(descriptor, "ab", buffering=0) as file:
                while data:
                    data = data[file.write(data) :]
        except OSError:
            with contextlib.suppress(OSError):
                os.truncate(path, length)
            raise


@contextlib.contextmanager
def replacing_folder(target: Path) -> Iterator[Path]:
    """Yield a new folder that replaces the target at the end, by two renames; an error leaves the target unchanged."""
    with writing(target, as_a_whole=True), _replacing_folder(target) as new:
        yield new


@contextlib.contextmanager
def _replacing_folder(target: Path) -> Iterator[Path]:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as beside:
        new, former = Path(beside) / "new", Path(beside) / "former"
        new.mkdir()
        yield new
        with held():
            _put_in_place(new, target, former)
    _sync_folder(target.parent)


def _put_in_place(new: Path, target: Path, former: Path) -> None:
    if not target.exists():
        os.replace(new, target)
        return
    os.replace(target, former)
    try:
        os.replace(new, target)
    except BaseException:
        os.replace(former, target)
        raise


def save_with_manifest(path: Path, write: Write, **facts: Any) -> None:
    """Write a checkpoint and its manifest, and remove what a killed save of this folder left behind.

    Args:
        path: the checkpoint.
        write: writes its content.
        facts: further entries of the manifest, such as the step.
    """
    entry: dict[str, Any] = {}

    def announce(file: HashingFile) -> None:
        entry.update({"size": file.size, "sha256": file.sha256(), **facts})
        _write_manifest(path, [entry, *read_manifest(path)])

    with held(), writing(path):
        for stale in path.parent.glob(_beside(Path("*.ckpt")).name):
            stale.unlink()
        write_durably(path, write, announce)
        _write_manifest(path, [entry])


def remove_with_manifest(path: Path) -> None:
    """Remove a checkpoint, its manifest last: without a manifest it would look like another tool's."""
    with held():
        path.unlink(missing_ok=True)
        manifest_of(path).unlink(missing_ok=True)


def manifest_of(path: Path) -> Path:
    return path.with_name(f"{path.name}{MANIFEST}")


def read_manifest(path: Path) -> list[dict[str, Any]]:
    """Return the entries of a checkpoint's manifest; none without a manifest, or if a byte of it has changed."""
    try:
        text = manifest_of(path).read_bytes().decode("utf-8")
        content = json.loads(text)
        name, entries = content["file"], content["entries"]
        whole = text in (_manifest(name, entries), _json({"file": name, "entries": entries}))  # or an earlier format
        whole = whole and all(isinstance(entry, dict) for entry in entries)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
    return entries if whole else []


def entry_of(path: Path) -> dict[str, Any]:
    """Return the manifest entry that matches the existing checkpoint file; empty if there is none.

    A kill may leave two entries, for the previous file and for the one that was being saved. A folder has at most one.
    """
    entries = read_manifest(path)
    if path.is_file():
        size = path.stat().st_size
        entries = [entry for entry in entries if entry.get("size") == size]
        if len(entries) > 1:
            digest = sha256_of(path)
            entries = [entry for entry in entries if entry.get("sha256") == digest]
    return entries[0] if entries else {}


def write_manifest(path: Path, **facts: Any) -> None:
    """Write the manifest of a checkpoint that is a folder: the hashes of its files, and further facts."""
    names = [file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()]
    _write_manifest(path, [{"files": hashes_of(path, names), **facts}])


def forget_files(path: Path) -> None:
    """Remove the hashes of a folder's files from its manifest: the files are about to be overwritten."""
    if entry := entry_of(path) if path.is_dir() else {}:
        _write_manifest(path, [{key: value for key, value in entry.items() if key != "files"}])


def what_is_broken(path: Path) -> str | None:
    """Return why a checkpoint cannot be read, or None if it is complete.

    With a manifest, its size and hash, or those of a folder's files, must match an entry. Without one (another tool's)
    it must look complete: a file by its zip directory, which torch writes last; a folder by `what_a_folder_lacks`.
    """
    if path.is_dir():
        return what_a_folder_lacks(path) or _what_has_changed(path)
    if not path.is_file():
        return "it does not exist"
    if manifest_of(path).exists():
        return _differs_from_manifest(path)
    return None if zipfile.is_zipfile(path) else "it has no manifest and is not a whole zip archive, as torch writes it"


def why_not_resumed(path: Path) -> str | None:
    """Return why no run resumes exactly from an intact checkpoint, as its manifest says."""
    reason = entry_of(path).get("cannot_resume")
    return None if reason is None else str(reason)


def _what_has_changed(path: Path) -> str | None:
    """Return which file of a folder differs from its manifest."""
    if not manifest_of(path).exists():
        return None
    if not (entries := read_manifest(path)):
        return f"{manifest_of(path).name} cannot be read"
    listed = entries[0].get("files")
    if not isinstance(listed, dict):
        return None  # killed while being overwritten, or written by an earlier version
    for name in listed:
        if not (path / name).is_file():
            return f"{name} is missing"
    found = hashes_of(path, listed)
    return next((f"{name} has changed since it was written" for name in listed if found[name] != listed[name]), None)


def _differs_from_manifest(path: Path) -> str | None:
    entries, size = read_manifest(path), path.stat().st_size
    if not entries:
        return f"{manifest_of(path).name} cannot be read"
    of_size = [entry for entry in entries if entry.get("size") == size]
    if not of_size:
        return f"it has {size} bytes, its manifest says {' or '.join(str(entry.get('size')) for entry in entries)}"
    digest = sha256_of(path)
    return None if any(entry.get("sha256") == digest for entry in of_size) else "its hash is not its manifest's"


def _write_manifest(path: Path, entries: list[dict[str, Any]]) -> None:
    write_text_durably(manifest_of(path), _manifest(path.name, entries))


def _manifest(name: Any, entries: Any) -> str:
    """Return the text of a manifest with a hash of its content, so that damage to it is detected too."""
    own = hashlib.sha256(json.dumps([name, entries], sort_keys=True).encode()).hexdigest()
    return _json({"file": name, "entries": entries, "sha256": own})


def _json(content: Any) -> str:
    return json.dumps(content, indent=2) + "\n"


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


def _sync_folder(folder: Path) -> None:
    """Sync a folder: a rename is on disk only once the folder is."""
    if os.name == "nt":
        return  # the system cannot open folders
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
