"""Ctrl-C, SIGTERM and SIGHUP at random moments: one line, the signal's exit code, and the printed command continues."""

from __future__ import annotations

import json
import os
import random
import shlex
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from kill_resume import end_of, watch_saving

from fault_catalogue import Fault, Outcome
from fault_catalogue.runs import ALL_FAMILIES, Running, undisturbed, write_folder

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
MOMENTS = 8  # of a slow fault
SAME = "the same command"


def stop(folder: Path, words: list[str], signum: int, draw: random.Random, seconds: float, saving: int) -> Running:
    """Run and send the signal: at any moment, or, every other time, within the saving of a file."""
    if draw.random() < 0.5:
        at = draw.randrange(saving)
        run = Running("train", words, folder, lambda _: watch_saving(at, signum))
    else:
        run = Running("train", words, folder)
        moment = run.began + draw.uniform(0.0, seconds)
        run.wait_until(lambda: time.monotonic() > moment)
        if run.code is None:
            os.kill(run.pid, signum)
    run.wait()
    return run


def halves(folder: Path, words: list[str]) -> int:
    """Return how many halves of writes, syncs and renames a run has."""
    count = folder / "halves"
    run = Running("train", words, folder, lambda _: watch_saving(count=count))
    if run.wait() != 0:
        raise RuntimeError(f"the run ended with {run.code}: {run.err[-3:]}")
    shutil.rmtree(folder / "run")
    return len(count.read_bytes())


def lost_steps(run: Path) -> int:
    """Return the steps in metrics.jsonl after the last checkpoint, once there is one."""
    manifest, metrics = run / "checkpoints/last.ckpt.manifest.json", run / "metrics.jsonl"
    if not manifest.exists() or not metrics.exists():
        return 0
    saved = max(entry["global_step"] for entry in json.loads(manifest.read_text())["entries"])
    return max(0, *(json.loads(line)["step"] - saved for line in metrics.read_text().splitlines()), 0)


def go_on(folder: Path, words: list[str], line: str) -> Running:
    """Do what the line says."""
    more = shlex.split(line.partition(f"{SAME} with ")[2])
    run = Running("train", [*words, *more], folder)
    run.wait()
    return run


def stops(family: str, signum: int, moments: int, folder: Path) -> Outcome:
    """Stop runs at random moments and continue as they say, until each has ended."""
    words = [*ALL_FAMILIES[family], "logger=none"]
    whole = undisturbed(folder.parent, family, ["logger=none"])
    write_folder(folder)
    saving, draw = halves(folder, words), random.Random(f"{family} {signum}")
    lost, equal, wrong, seconds, stopped = 0, True, [], 0.0, 0
    for number in range(moments):
        shutil.rmtree(folder / "run", ignore_errors=True)
        run = stop(folder, words, signum, draw, whole.seconds, saving)
        said = [line for line in run.err if line not in whole.lines]
        name = f"{signal.Signals(signum).name} {number}"
        if run.code != 0:
            stopped += 1
            one_line = len(said) == 1 and said[0].startswith("stopped by ") and SAME in said[0]
            if run.code != 128 + signum or not one_line:
                wrong.append(f"{name}: code {run.code}, {said}")
                continue
            lost += lost_steps(folder / "run")
            former, run = run, go_on(folder, words, said[0])
            seconds = max(seconds, former.seconds + run.seconds - whole.seconds)
        elif said:
            wrong.append(f"{name}: code 0, {said}")
        if run.code != 0:
            wrong.append(f"{name}: going on ended with {run.code}: {run.err[-1:]}")
        elif end_of(folder / "run") != whole.end:
            equal = False
            wrong.append(f"{name}: another end")
        if hidden := [path.name for path in (folder / "run").glob(".*") if path.name.startswith(".model")]:
            wrong.append(f"{name}: left {hidden}")
    note = "; ".join(wrong) or f"{stopped} of {moments} runs stopped, each with one line"
    good = not wrong and not lost and equal and (stopped > 0 or moments < MOMENTS)  # one may come after the end
    return Outcome(lost, equal, seconds, 1, good, note)


def _fault(family: str, signum: signal.Signals, moments: int, slow: bool) -> Fault:
    run: Callable[[Path], Outcome] = partial(stops, family, signum, moments)
    times = f"{moments} random moments"
    return Fault(f"signals: {signum.name} at {times} of {family}", slow, run)


FAULTS = [
    *(_fault(family, signal.SIGINT, 1, slow=False) for family in ("sft", "ppo")),
    *(_fault(family, signum, MOMENTS, slow=True) for family in ALL_FAMILIES for signum in SIGNALS),
]
