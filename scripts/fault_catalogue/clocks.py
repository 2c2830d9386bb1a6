"""Faults of clocks and copies: a run continues from its own newest checkpoint, whatever the files' times say."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from kill_resume import end_of

from fault_catalogue import Fault, Outcome
from fault_catalogue.runs import FAMILIES, Running, pausing, undisturbed, write_folder

NO_LOGGER = ["logger=none"]
YEAR = 365 * 24 * 3600
KILLED_AFTER = {"sft": 7, "ppo": 5}  # steps, after which there are checkpoints of two epochs or iterations


def nothing(_: Path) -> None:
    """Leave the machine's own clock."""


def clock(_: Path, seconds: float, after: int = 0) -> None:
    """In a child, set a clock that is wrong by this many seconds once it has been read this often."""
    real, reads = (time.time, time.time_ns), 0

    def shift() -> float:
        nonlocal reads
        reads += 1
        return seconds if reads > after else 0.0

    time.time = lambda: real[0]() + shift()
    time.time_ns = lambda: real[1]() + int(shift() * 1e9)


def age(run: Path, seconds: float) -> None:
    """Give every file the time of a clock that is wrong by this much."""
    for path in [run, *run.rglob("*")]:
        os.utime(path, (time.time() + seconds,) * 2)


def aged(run: Path, seconds: float) -> Path:
    """Do the same as `age`, in place."""
    age(run, seconds)
    return run


def copied(run: Path) -> Path:
    """Copy the run to another name without file times, in arbitrary order; the original is deleted."""
    copy = run.with_name("copy")
    shutil.copytree(run, copy, copy_function=shutil.copyfile)
    for number, path in enumerate(sorted(copy.rglob("*"), key=lambda path: path.name, reverse=True)):
        os.utime(path, (time.time() - number,) * 2)
    shutil.rmtree(run)
    return copy


def without_hidden(run: Path) -> Path:
    """Copy the run with a command that skips hidden files."""
    copy = run.with_name("copy")
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns(".*"))
    return copy


def without_manifests(run: Path) -> Path:
    """Copy by hand, only the checkpoints."""
    copy = run.with_name("copy")
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("*.manifest.json", ".*"))
    age(copy, 0)
    return copy


def restored(run: Path) -> Path:
    """Make all file times equal."""
    for path in run.rglob("*"):
        os.utime(path, (1e9, 1e9))
    return run


def after_a_second_run(run: Path) -> Path:
    """Leave a checkpoint of an earlier run in the folder, the newest by file time."""
    earlier = run.parent / "earlier"
    other = Running(
        "train", [*FAMILIES["sft"], *NO_LOGGER, "run_dir=earlier", "seed=7", "trainer.max_epochs=1"], run.parent
    )
    if other.wait() != 0:
        raise RuntimeError(f"the earlier run ended with {other.code}: {other.err}")
    for path in earlier.glob("checkpoints/*.ckpt*"):
        shutil.copy(path, run / "checkpoints" / path.name.replace("last", "earlier"))
    for path in run.glob("checkpoints/earlier*"):
        os.utime(path, (time.time() + YEAR,) * 2)
    return run


def interrupted(
    folder: Path,
    family: str,
    meanwhile: Callable[[Path], Path],
    clocks: Sequence[Callable[[Path], None]] = (nothing, nothing),
    lines: int = 0,
) -> Outcome:
    """Kill a run, let something happen to its folder, resume it there.

    Args:
        folder: a separate folder.
        family: the run's family.
        meanwhile: takes the run folder and returns where it is then.
        clocks: the run's clock and the resumed run's.
        lines: how many lines may report differences or skipped checkpoints.
    """
    whole = undisturbed(folder.parent, family, NO_LOGGER)
    write_folder(folder)
    step = KILLED_AFTER[family]
    words = [*FAMILIES[family], *NO_LOGGER, *pausing(step)]
    first = Running("train", words, folder, clocks[0])
    first.pause(step, first.kill)
    run = meanwhile(folder / "run")
    again = Running("train", [*words, f"run_dir={run.name}", "ckpt=last"], folder, clocks[1])
    code = again.wait()
    said = [line for line in again.err if not line.startswith("resume: run_dir")]
    end = end_of(run) if code == 0 else None
    faults = {
        f"exit code {code}: {again.err[-1:]}": code != 0,
        f"{len(said)} lines: {said[:2]}": len(said) > lines,
        "the end differs": end is not None and end != whole.end,
    }
    wrong = [fault for fault, is_there in faults.items() if is_there]
    lost = 0 if end == whole.end else 1
    return Outcome(lost, end == whole.end, again.seconds, len(said), not wrong, "; ".join(wrong) or "resumed")


def back(seconds: float, after: int = 0) -> Callable[[Path], None]:
    """Return a clock for a run."""
    return partial(clock, seconds=seconds, after=after)


CASES: dict[str, tuple[Callable[[Path], Path], Sequence[Callable[[Path], None]], int]] = {
    "set back by a year before the resume": (partial(aged, seconds=0.0), (nothing, back(-YEAR)), 0),
    "forward by a year in the first half": (partial(aged, seconds=YEAR), (back(YEAR), nothing), 0),
    "set back by a year mid-run": (partial(aged, seconds=-YEAR), (back(-YEAR, after=20), nothing), 0),
    "forward by a year mid-run": (partial(aged, seconds=YEAR), (back(YEAR, after=20), back(-YEAR)), 0),
    "copied without times, under another name": (copied, (nothing, nothing), 0),
    "copied without hidden files": (without_hidden, (nothing, nothing), 0),
    "copied without manifests": (without_manifests, (nothing, nothing), 0),
    "restored with all times equal": (restored, (nothing, nothing), 0),
    "an earlier run's checkpoint is the newest by its time": (after_a_second_run, (nothing, nothing), 1),
}
FAULTS = [
    Fault(
        f"clocks: {family}, {name}",
        (family, name) != ("sft", "copied without times, under another name"),
        partial(interrupted, family=family, meanwhile=meanwhile, clocks=clocks, lines=lines),
    )
    for family in KILLED_AFTER
    for name, (meanwhile, clocks, lines) in CASES.items()
]
