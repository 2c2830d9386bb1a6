"""Errors of a disk that accepts no more: full, over a quota or a size limit, failing, read-only.

Every library words them differently. Python raises an OSError with a number; safetensors, tokenizers and pyarrow put
the number into a text; torch and SQLite use sentences; and some raise their own error while handling it.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FAILS = {errno.EIO, errno.EROFS, errno.ENXIO, errno.ESTALE}
_NUMBER = re.compile(r"(?:os error|errno) (\d+)", re.IGNORECASE)
_SENTENCES = (
    ("No space left on device", errno.ENOSPC),
    ("Disk quota exceeded", errno.EDQUOT),
    ("File too large", errno.EFBIG),
    ("Input/output error", errno.EIO),
    ("Read-only file system", errno.EROFS),
    ("database or disk is full", errno.ENOSPC),
    ("disk I/O error", errno.EIO),
)
_TORCH = ("PytorchStreamWriter failed", "unexpected pos")  # these do not say why


def disk_error(error: BaseException) -> int | None:
    """Return the system's error number of the disk error behind an exception; None if there is none."""
    return next((number for each in _chain(error) if (number := _number(each)) is not None), None)


def lacks_room(error: BaseException) -> bool:
    """Return whether an exception comes from a full disk, or from a limit on what may be written."""
    return disk_error(error) in _ROOM


def file_of(error: BaseException) -> str | None:
    """Return the file that a disk exception names."""
    return next((str(each.filename) for each in _chain(error) if isinstance(each, OSError) and each.filename), None)


def finding(number: int, folder: Path) -> str:
    """Return what is wrong, and how much space is free where it matters.

    Args:
        number: the system's error number.
        folder: where something was written; it need not exist.
    """
    said = os.strerror(number)
    said = said[0].lower() + said[1:]
    if number == errno.EFBIG:
        return f"{said}; {_limit_of_size()}"
    if number in (errno.ENOSPC, errno.EDQUOT):
        there = _nearest(folder)
        return f"{said}, {_size(shutil.disk_usage(there).free)} are free in {there}"
    return said


def remedy(number: int) -> str:
    """Return the user's next step."""
    if number == errno.EFBIG:
        return "raise the limit (ulimit -f)"
    return "make room" if number in _ROOM else "check the disk, or choose another folder"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception, and those that it was raised from or while handling."""
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        yield following
        following = following.__cause__ or (None if following.__suppress_context__ else following.__context__)


def _number(error: BaseException) -> int | None:
    if isinstance(error, OSError) and error.errno in _ROOM | _FAILS:
        return error.errno
    if isinstance(error, OSError) and error.errno is not None:
        return None
    text = str(error)
    numbers = {int(found) for found in _NUMBER.findall(text)} & (_ROOM | _FAILS)
    if numbers:
        return numbers.pop()
    if any(words in text for words in _TORCH) and isinstance(error, RuntimeError):
        return errno.ENOSPC if error.__context__ is None and error.__cause__ is None else None
    return next((number for words, number in _SENTENCES if words in text), None)


def _limit_of_size() -> str:
    try:
        import resource
    except ImportError:  # not available on Windows
        return "the file system has a limit"
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if limit == resource.RLIM_INFINITY:
        return "the file system has a limit"
    return f"a file may have {_size(limit)} here"


def _nearest(folder: Path) -> Path:
    """Return the folder, or its first existing parent."""
    return next((each for each in (folder, *folder.parents) if each.is_dir()), Path())


def _size(count: int) -> str:
    """Return a number of bytes in readable units.

    >>> _size(12288), _size(0), _size(5 << 30)
    ('12 KiB', '0 bytes', '5 GiB')
    """
    for unit, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if count >= 1 << shift:
            return f"{count / (1 << shift):.3g} {unit}"
    return f"{count} bytes"
