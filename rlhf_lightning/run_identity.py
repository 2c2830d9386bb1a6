"""Which run a checkpoint belongs to, and which of two was saved later, without relying on file times.

A file's time says neither: a copy, a restored backup, `touch`, or a clock that was set or is wrong on another machine
change it. So a run draws an id when it begins and writes it to `checkpoints/.started` of its folder; the id and
`saved`, a number that only grows, go into every checkpoint and its manifest. `saved` is the time in nanoseconds, or one
more than the largest existing one if the clock is behind that (a hybrid logical clock), so it also orders the
checkpoints of runs that follow each other. Needs no torch.

Checkpoints and `.started` files of earlier versions have no id: for those, the files' times decide.
"""

from __future__ import annotations

import json
import pickletools
import time
import uuid
import zipfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlhf_lightning.durable import MANIFEST, entry_of, manifest_of, read_manifest, write_text_durably

STARTED = ".started"
NO_RUN = ""
_LARGEST_PICKLE = 1 << 26  # bytes of a checkpoint's non-tensor content


@dataclass(frozen=True)
class Started:
    """What `checkpoints/.started` says about the run that continues in a folder.

    Args:
        run_id: its id; empty in a file of an earlier version.
        since: the largest `saved` there was when the run began or was last resumed.
        job: the cluster's job that did so.
        began_ns: the time of the file that an earlier version wrote; None: this file's own time.
    """

    run_id: str
    since: int = 0
    job: str = ""
    began_ns: int | None = None


def begin(folder: Path, job: str = "", others: Iterable[Path] = ()) -> None:
    """Note that a new run begins in a folder of checkpoints.

    Args:
        folder: the folder of the run's checkpoints.
        job: the cluster's job, by a name that it keeps when requeued.
        others: folders whose checkpoints are older than any that this run will save.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder, Started(uuid.uuid4().hex, latest(folder, *others), job))


def go_on(folder: Path, checkpoint: Path, job: str = "", others: Iterable[Path] = ()) -> None:
    """Note that the run of a checkpoint continues in a folder. Arguments as for `begin`."""
    folder.mkdir(parents=True, exist_ok=True)
    former, identity = read_started(folder), identity_of(checkpoint)
    own = former.run_id if former and checkpoint.parent.resolve() == folder.resolve() else NO_RUN
    run_id = identity.get("run_id") or own or uuid.uuid4().hex
    since = max(latest(folder, checkpoint.parent, *others), _saved(identity), former.since if former else 0)
    began_ns = None if former is None else _began(former, folder)
    _write(folder, Started(str(run_id), since, job, began_ns))


def read_started(folder: Path) -> Started | None:
    """Return what `.started` in a folder of checkpoints says; None if there is none."""
    try:
        text = (folder / STARTED).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    try:
        said = json.loads(text)
        return Started(str(said["run_id"]), int(said["since"]), str(said["job"]), said.get("began_ns"))
    except (ValueError, TypeError, KeyError, AttributeError):
        return Started(NO_RUN, job=text)  # an earlier version's: only the job


def latest(*folders: Path) -> int:
    """Return the largest `saved` in the manifests of some folders; 0 if there is none."""
    manifests = [path for folder in dict.fromkeys(folders) for path in folder.glob(f"*{MANIFEST}")]
    checkpoints = [path.with_name(path.name.removesuffix(MANIFEST)) for path in manifests]
    return max((_saved(entry) for path in checkpoints for entry in read_manifest(path)), default=0)


def identity_of(checkpoint: Path) -> dict[str, Any]:
    """Return `run_id` and `saved` of a checkpoint from its manifest, or without one from the checkpoint itself."""
    if not manifest_of(checkpoint).exists():
        return _identity_inside(checkpoint)
    # For a file that the manifest does not know, the newest entry is returned.
    return entry_of(checkpoint) or max(read_manifest(checkpoint), key=_saved, default={})


def newness(checkpoint: Path) -> tuple[int, int, int]:
    """Return a key by which the checkpoint saved last sorts last.

    Those without `saved`, from earlier versions, come before all others, and unreadable ones after them, so that they
    are looked at.
    """
    saved = _saved(identity_of(checkpoint))
    if checkpoint.is_file():
        manifest = manifest_of(checkpoint).exists()
        unreadable = not read_manifest(checkpoint) if manifest else not zipfile.is_zipfile(checkpoint)
    else:
        unreadable = False
    return 2 if unreadable else int(saved > 0), saved, _time_of(checkpoint)


def is_of_earlier_run(checkpoint: Path, started_in: Path) -> bool:
    """Return whether a checkpoint does not belong to the run that `.started` in a folder names.

    Args:
        checkpoint: the file or folder.
        started_in: the folder of the run's checkpoints; a checkpoint without an id is compared by time where it is.
    """
    started, run_id = read_started(started_in), identity_of(checkpoint).get("run_id")
    if started is None or (run_id and not started.run_id):
        return False
    if run_id:
        return bool(run_id != started.run_id)
    return checkpoint.parent == started_in and _time_of(checkpoint) < _began(started, started_in)


def is_saved_since(checkpoint: Path, started_in: Path) -> bool:
    """Return whether a checkpoint was saved after its run began or was last resumed."""
    started, saved = read_started(started_in), _saved(identity_of(checkpoint))
    if started is None:
        return False
    return saved > started.since if saved else _time_of(checkpoint) >= _time_of(started_in / STARTED)


class SaveCounter:
    """Gives every save of a run its number."""

    def __init__(self) -> None:
        self._last = 0
        self._read: set[Path] = set()

    def next(self, *folders: Path) -> int:
        """Return a number larger than those in the folders, than what `.started` says there, and than the last one."""
        for folder in set(folders) - self._read:
            started = read_started(folder)
            self._last = max(self._last, latest(folder), started.since if started else 0)
            self._read.add(folder)
        self._last = max(self._last + 1, time.time_ns())
        return self._last


def _identity_inside(checkpoint: Path) -> dict[str, Any]:
    """Return the last `run_id` and `saved` in a file of torch's, read without unpickling it."""
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
            if archive.getinfo(name).file_size > _LARGEST_PICKLE:
                return {}
            content = archive.read(name)
        values = [value for _, value, _ in pickletools.genops(content) if isinstance(value, str | int)]
    except (OSError, ValueError, StopIteration, zipfile.BadZipFile):
        return {}
    found: dict[str, Any] = {}
    for key, kind in (("run_id", str), ("saved", int)):
        # A key is followed by its number in the memo, an integer, and then by its value.
        places = [i for i, value in enumerate(values[:-2]) if value == key]
        if places and isinstance(values[places[-1] + 2], kind):
            found[key] = values[places[-1] + 2]
    return found


def _began(started: Started, folder: Path) -> int:
    return _time_of(folder / STARTED) if started.began_ns is None else started.began_ns


def _saved(entry: dict[str, Any]) -> int:
    saved = entry.get("saved")
    return saved if isinstance(saved, int) else 0


def _time_of(path: Path) -> int:
    return path.lstat().st_mtime_ns


def _write(folder: Path, started: Started) -> None:
    write_text_durably(folder / STARTED, json.dumps(asdict(started)) + "\n")
