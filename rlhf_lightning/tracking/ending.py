"""The end of a run in its store: how long to wait, and what to say about what is missing."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_lightning.tracking.mlflow_runs import clear_behind, mark_behind

if TYPE_CHECKING:
    from rlhf_lightning.callbacks.tracker import Outbox

OF_A_STAGE = 2.0  # seconds that a stage waits for a store that accepts nothing: its pipeline's end tries again
OF_A_STOP = 4.0  # seconds that a stopped run waits: whoever stops it may not wait long
_LONGEST = 30.0  # seconds that the end of a run waits for its store in total, plus ...
_BYTES_PER_SECOND = 10e6  # ... a second for this many bytes of the model
_A_MOMENT = 2.5  # seconds that it waits silently


def seconds_for(*folders: Path) -> float:
    """Return how long the end of a run waits for its store: longer if models have to be sent."""
    files = [file for folder in folders for file in (folder / "model").rglob("*") if file.is_file()]
    return _LONGEST + sum(file.stat().st_size for file in files) / _BYTES_PER_SECOND


def wait(outbox: Outbox, seconds: float, patience: float | None) -> None:
    """Wait for a store, and say so if that takes more than a moment."""
    if not outbox.wait(_A_MOMENT, patience) and (patience is None or patience > _A_MOMENT):
        print(f"tracking: waiting for {outbox.notice.store}", flush=True)
        outbox.wait(seconds - _A_MOMENT, patience)


def close(outbox: Outbox, folder: Path, uri: str, key: str, silent: bool = False, further: Iterable[str] = ()) -> None:
    """Say, and note in the folder, what a store has not received."""
    left = list(dict.fromkeys([*outbox.close(), *further]))
    if not left:
        clear_behind(folder, uri)
        if outbox.notice.said_outage and not silent:
            print(f"tracking: {outbox.notice.store} has all of the run", flush=True)
        return
    mark_behind(folder, uri, key)
    if not silent:
        line = outbox.notice.left(_in_words(left))
        if outbox.notice.said_outage:  # a line on standard error has already said it, and how to send it
            print(line, flush=True)
        else:
            outbox.notice.say(line)


def _in_words(things: list[str]) -> str:
    return " and ".join(([", ".join(things[:-1])] if things[:-1] else []) + things[-1:])
