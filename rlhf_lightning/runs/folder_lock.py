"""One run at a time in a writable folder, checked before any heavy import."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from rlhf_lightning.disk import lacks_room
from rlhf_lightning.durable import has_other_names
from rlhf_lightning.errors import UserError, as_disk_error, reason

try:
    import fcntl
except ImportError:  # not available on Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"


class FolderLock:
    """Allows one run at a time in a folder: two would mix their metrics and overwrite each other's checkpoints.

    The system releases the lock when the process ends, however it ends.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK
        self._file: IO[Any] | None = None

    def check(self) -> None:
        """Raise UserError if another run holds the lock now."""
        if self.path.is_file():
            self.take()
            self.release()

    def take(self) -> None:
        """Hold the lock until the end of the process, or `release`.

        Raises:
            UserError: another run holds it.
        """
        if fcntl is None or self._file is not None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if has_other_names(self.path):
            self.path.unlink()  # not our file: the lock file is removed with the run, and has one name
        file = os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644), "r+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = file.read().strip() or "unknown"
            file.close()
            raise UserError(
                f"run_dir: another run is in progress in {self.path.parent} (process {owner}); wait for it, stop it, "
                "or choose another folder"
            ) from None
        file.truncate(0)
        with contextlib.suppress(OSError):  # on a full disk, the lock holds without the number
            os.write(file.fileno(), f"{os.getpid()}\n".encode())
        self._file = file

    def release(self) -> None:
        """Release the lock and remove its file."""
        if self._file is not None:
            self.path.unlink(missing_ok=True)
            self._file.close()
            self._file = None

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def check_run_dir(folder: Path) -> None:
    """Raise UserError if the folder cannot be created or written to, or leads elsewhere. It stays unchanged."""
    existing = folder
    while not existing.exists() and not existing.is_symlink() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise UserError(f"run_dir: {existing} is a file; choose another folder")
    for name in ("checkpoints", "model"):
        if (folder / name).is_symlink():
            raise UserError(
                f"run_dir: {folder / name} is a link, and a run writes in its own folder only; remove the link, make "
                "run_dir itself one, or set callbacks.checkpoint.dirpath"
            )
    probe = None
    try:
        probe = tempfile.mkdtemp(prefix=".rlhf-lightning-", dir=existing)
    except OSError as error:
        if lacks_room(error) and (full := as_disk_error(error, folder, existing)):
            raise full from error
        why = error.strerror or reason(error)
        raise UserError(f"run_dir: {folder} cannot be written ({why.lower()}); choose another folder") from error
    finally:
        if probe is not None:
            with contextlib.suppress(OSError):
                os.rmdir(probe)
