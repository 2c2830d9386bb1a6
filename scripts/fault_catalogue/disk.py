"""Faults of a disk: full at any moment, a limit of size, errors of the device. One line, nothing lost, nothing left."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial, wraps
from pathlib import Path
from typing import Any

from kill_resume import end_of

from fault_catalogue import Fault, Outcome
from fault_catalogue.runs import ALL_FAMILIES, Running, undisturbed, write_folder

NO_LOGGER = ["logger=none"]
AGAIN = "start it again with the same command"
DONE_AFTERWARDS = 3  # exit code: trained and exported, but something after it failed
# Fills the disk up to some bytes after the last step, so that what follows training finds it full.
FILLS = """
import shutil
from pathlib import Path
from lightning.pytorch import Callback

class Fill(Callback):
    def __init__(self, leave):
        self.leave = leave
    def on_fit_end(self, trainer, module):
        if not Path("filled").exists():
            Path("filled").touch()
            free = shutil.disk_usage("run").free - self.leave
            Path("run/filler").write_bytes(bytes(max(free, 0)))
"""


@cache
def may_mount() -> bool:
    """Return whether this user may make a small file system in the memory of this machine."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", folder]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode != 0:
            return False
        subprocess.run(["umount", folder], check=True)
    return True


def on_a_small_disk(fault: Callable[..., Outcome]) -> Callable[..., Outcome]:
    """Return a fault that is skipped if no file system can be mounted."""

    @wraps(fault)
    def tried(*arguments: Any, **options: Any) -> Outcome:
        if not may_mount():
            return Outcome(0, None, 0.0, 0, True, "not tried: this user may not mount a file system")
        return fault(*arguments, **options)

    return tried


@contextlib.contextmanager
def small_disk(folder: Path, kib: int) -> Iterator[Callable[[int], None]]:
    """Mount a file system of this size, in memory, on a folder; yield a function that changes its size."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)], check=True)
    try:
        yield lambda size: subprocess.run(["mount", "-o", f"remount,size={size}k", str(folder)], check=True) and None
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@dataclass
class Taken:
    """How one run took a fault at one moment, and how its resumption went."""

    code: int
    lines: list[str]
    wrong: list[str]
    equal: bool
    seconds: float


def taken(
    folder: Path,
    family: str,
    run: Running,
    room: Callable[[], None],
    codes: Sequence[int] = (2,),
    words: Sequence[str] = (),
) -> Taken:
    """Wait for the run's end, check what it left, make room, resume, and compare."""
    whole = undisturbed(folder.parent, family, NO_LOGGER)
    code, made = run.wait(), folder / "run"
    wrong = what_is_wrong(made, run, codes) if code else []
    resumed, again = True, run
    if code:
        room()
        (made / "filler").unlink(missing_ok=True)
        found = any((made / "checkpoints").glob("*.ckpt"))
        again = Running("train", [*ALL_FAMILIES[family], *NO_LOGGER, *words, *(["ckpt=last"] if found else [])], folder)
        if again.wait() or again.err:
            wrong.append(f"resumed: {again.code} {again.err[:2]}")
            resumed = False
    equal = resumed and end_of(made) == whole.end
    seconds = run.seconds + (again.seconds if again is not run else 0) - whole.seconds
    return Taken(code, run.err, wrong if equal else [*wrong, "the end differs"], equal, seconds)


def what_is_wrong(made: Path, run: Running, codes: Sequence[int]) -> list[str]:
    """Return what a run stopped by the disk left or printed but must not."""
    from rlhf_lightning.durable import what_is_broken

    hidden = [path for path in made.rglob(".*") if path.name not in (".started", ".lock")]
    broken = [path for path in made.glob("checkpoints/*.ckpt") if what_is_broken(path) is not None]
    lines = [made / name for name in ("metrics.jsonl", "samples.jsonl")]
    half = [path for path in lines if path.exists() and path.read_bytes()[-1:] not in (b"", b"\n")]
    line = run.err[0] if run.err else ""
    faults = {
        f"exit code {run.code}": run.code not in codes,
        f"{len(run.err)} lines, such as {run.err[-1:]}": len(run.err) != 1,
        f"the line does not say what: {line}": "cannot be written" not in line,
        f"the line does not say how to go on: {line}": not line.endswith(AGAIN) and "ckpt=last" not in line,
        f"left {hidden}": hidden,
        f"broken {broken}": broken,
        f"half a line in {half}": half,
    }
    return [fault for fault, is_there in faults.items() if is_there]


def summed_up(all_taken: Sequence[Taken]) -> Outcome:
    """Return the combined outcome of a fault at several moments."""
    stopped = [each for each in all_taken if each.code]
    wrong = [fault for each in all_taken for fault in each.wrong]
    names = {
        each.lines[0].partition(" cannot be written")[0].split("/")[-1].split()[-1] for each in stopped if each.lines
    }
    note = wrong[0] if wrong else f"stopped at {len(stopped)} of {len(all_taken)} moments: {', '.join(sorted(names))}"
    return Outcome(
        lost=sum(bool(each.wrong) for each in all_taken),
        equal=all(each.equal for each in all_taken),
        seconds=sum(each.seconds for each in all_taken),
        lines=max((len(each.lines) for each in all_taken), default=0),
        good=not wrong and bool(stopped),
        note=note,
    )


def prepared(folder: Path) -> Path:
    """Return a folder with everything that a run of any family needs."""
    write_folder(folder)
    (folder / "fills.py").write_text(FILLS)
    return folder


@on_a_small_disk
def full(folder: Path, family: str, sizes: Sequence[int]) -> Outcome:
    """Give the disk of the run folder this many KiB, for one run after another."""
    found = []
    for kib in sizes:
        place = prepared(folder.parent / f"{folder.name}.{kib}")
        with small_disk(place / "run", kib) as resize:
            run = Running("train", [*ALL_FAMILIES[family], *NO_LOGGER], place)
            found.append(taken(place, family, run, partial(resize, 1 << 16)))
    return summed_up(found)


@on_a_small_disk
def full_after_training(folder: Path, family: str, left: Sequence[int]) -> Outcome:
    """Leave this many KiB on the disk, which holds an earlier model, when training has ended."""
    found = []
    for kib in left:
        place = prepared(folder.parent / f"{folder.name}.{kib}")
        with small_disk(place / "run", 1 << 14) as resize:
            former = place / "run/model/config.json"
            former.parent.mkdir()
            former.write_text("an earlier model")
            fill = ["+callbacks.fill._target_=fills.Fill", f"+callbacks.fill.leave={kib << 10}"]
            run = Running("train", [*ALL_FAMILIES[family], *NO_LOGGER, *fill], place)
            code = run.wait()
            lost = code == 2 and (former.read_text() != "an earlier model" or len(list(former.parent.iterdir())) > 1)
            found.append(taken(place, family, run, partial(resize, 1 << 16), (2, DONE_AFTERWARDS), fill))
            found[-1].wrong += ["the earlier model is not whole"] if lost else []
    return summed_up(found)


@on_a_small_disk
def full_over_a_finished_run(folder: Path, family: str, left: Sequence[int]) -> Outcome:
    """Leave this many KiB where an earlier run has ended, in whose folder another one begins."""
    wrong, stopped, seconds = [], 0, 0.0
    place = prepared(folder.parent / f"{folder.name}.finished")
    with small_disk(place / "run", 1 << 14):
        first = Running("train", [*ALL_FAMILIES[family], *NO_LOGGER], place)
        if first.wait() != 0:
            raise RuntimeError(f"the earlier run ended with {first.code}: {first.err}")
        before = contents(place / "run")
        for kib in left:
            free = shutil.disk_usage(place / "run").free
            (place / "run/filler").write_bytes(bytes(free - (kib << 10)))
            second = Running("train", [*ALL_FAMILIES[family], *NO_LOGGER, "seed=7"], place)
            code = second.wait()
            stopped, seconds = stopped + 1, seconds + second.seconds
            (place / "run/filler").unlink()
            wrong += what_is_wrong(place / "run", second, (2,)) if code else [f"{kib} KiB: it was not stopped"]
            changed = [name for name, content in before.items() if contents(place / "run").get(name) != content]
            wrong += [f"{kib} KiB: changed {changed}"] if changed else []
    note = wrong[0] if wrong else f"stopped {stopped} times, the earlier run is whole"
    return Outcome(len(wrong), None, seconds - first.seconds * stopped, 1, not wrong, note)


def contents(run: Path) -> dict[str, bytes]:
    """Return all files of a run folder."""
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}


def limited(folder: Path, family: str, sizes: Sequence[int]) -> Outcome:
    """Limit files to this many KiB (ulimit -f)."""
    found = []
    for kib in sizes:
        place = prepared(folder.parent / f"{folder.name}.{kib}")

        def limit(_: Path, kib: int = kib) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (kib << 10, resource.RLIM_INFINITY))

        run = Running("train", [*ALL_FAMILIES[family], *NO_LOGGER], place, limit)
        found.append(taken(place, family, run, lambda: None))
    return summed_up(found)


def failing(folder: Path, family: str, number: int, calls: Sequence[int]) -> Outcome:
    """Let the device return `number` at the n-th write, sync or rename of the run's own files, and from then on."""
    found = []
    for n in calls:
        place = prepared(folder.parent / f"{folder.name}.{n}")
        run = Running("train", [*ALL_FAMILIES[family], *NO_LOGGER], place, partial(break_disk, number=number, at=n))
        found.append(taken(place, family, run, lambda: None, (2, DONE_AFTERWARDS)))
    return summed_up(found)


def break_disk(_: Path, number: int, at: int) -> None:
    """In a child: raise the error at the n-th write, sync or rename."""
    from rlhf_lightning import durable

    passed = 0

    def broken(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            nonlocal passed
            passed += 1
            if passed > at:
                raise OSError(number, os.strerror(number))
            return call(*arguments, **options)

        return wrapped

    os.fsync, os.replace = broken(os.fsync), broken(os.replace)
    durable.HashingFile.write = broken(durable.HashingFile.write)  # type: ignore[method-assign]


FULL = {
    "sft": (*range(4, 20, 4), *range(24, 300, 20)),
    "reward": (*range(4, 20, 4), *range(24, 300, 40)),
    "ppo": (*range(4, 20, 4), *range(24, 400, 40)),
    "dpo": (*range(4, 24, 4), *range(24, 300, 40)),
}
FAULTS = [
    Fault("disk: sft, full at any moment (a sample)", False, partial(full, family="sft", sizes=(12, 160))),
    Fault("disk: sft, full after training (a sample)", False, partial(full_after_training, family="sft", left=(20,))),
    *(
        Fault(f"disk: {family}, full at any moment", True, partial(full, family=family, sizes=sizes))
        for family, sizes in FULL.items()
    ),
    Fault(
        "disk: sft, full when a second run begins in the folder",
        False,
        partial(full_over_a_finished_run, family="sft", left=(0, 4)),
    ),
    *(
        Fault(
            f"disk: {family}, full after training",
            True,
            partial(full_after_training, family=family, left=tuple(range(0, 120, 8))),
        )
        for family in ALL_FAMILIES
    ),
    *(
        Fault(
            f"disk: {family}, a limit of a file's size",
            family != "sft",
            partial(limited, family=family, sizes=(1, 8, 40, 100) if family != "sft" else (40,)),
        )
        for family in ALL_FAMILIES
    ),
    *(
        Fault(
            f"disk: sft, {errno.errorcode[number]} at any write, sync or rename",
            number != errno.EIO,
            partial(failing, family="sft", number=number, calls=(5, 60) if number == errno.EIO else range(0, 90, 7)),
        )
        for number in (errno.EIO, errno.EDQUOT, errno.EROFS)
    ),
]
