"""Generate a large store of judgements and measure how long the next task, agreement and export take.

    python scripts/feedback_scale.py                                    100,000 tasks x 4, 500,000 judgements
    python scripts/feedback_scale.py --tasks 1000 --judgements 5000     a small one

The store is created in a temporary folder by table inserts (answering takes as long as the disk's syncs).
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from rlhf_lightning.feedback import Answer, FeedbackStore, Response, Task, agreement_report, preference_rows, task_id
from rlhf_lightning.feedback.schema import assignments, judgements, labelers, tasks

LABELERS = 20
PER_TASK = 5
T = TypeVar("T")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("--judgements", type=int, default=500_000)
    parser.add_argument("--folder", type=Path, help="where the store is made; default: a temporary folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        store = FeedbackStore(f"sqlite:///{folder}/feedback.db")
        _timed("generate", lambda: _fill(store, arguments.tasks, arguments.judgements))
        _next_tasks(store)
        report = _timed("agreement", lambda: agreement_report(store.tasks(), store.judgements(), draws=1000))
        print(f"alpha {report.alpha.value:.3f} [{report.alpha.low:.3f}, {report.alpha.high:.3f}]")
        count = _timed("export", lambda: sum(1 for _ in preference_rows(store.tasks(), store.judgements())))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{count} pairs exported; {peak:.0f} MiB at most")


def _generated(count: int) -> Iterator[Task]:
    for i in range(count):
        texts = [f"answer {j} to {i} " + "word " * (i * j % 40) for j in range(4)]
        yield Task(
            task_id("ranking", f"prompt {i}", texts),
            "ranking",
            f"prompt {i}",
            tuple(Response(text, f"policy {j}") for j, text in enumerate(texts)),
            overlap=PER_TASK + 1,
        )


def _fill(store: FeedbackStore, task_count: int, judgement_count: int) -> None:
    store.add_tasks(_generated(task_count))
    for i in range(LABELERS):
        store.add_labeler(f"labeler{i}", "simulated")
    numbers = random.Random(0)
    rows, given = [], []
    for i in range(min(judgement_count, task_count * PER_TASK)):
        task, labeler = i // PER_TASK + 1, (i // PER_TASK + i % PER_TASK * 3) % LABELERS + 1
        ranks = sorted(range(1, 5), key=lambda rank: rank + numbers.gauss(0, 1))
        rows.append(
            {
                "key": str(i),
                "task": task,
                "labeler": labeler,
                "repeat": False,
                "verdict": "ranking",
                "ranks": json.dumps(ranks),
                "seconds": numbers.expovariate(1 / 20),
                "created": float(i),
            }
        )
        given.append({"task": task, "labeler": labeler, "repeat": False, "state": "done"})
    with store.changing() as connection:
        for start in range(0, len(rows), 10_000):
            connection.execute(judgements.insert(), rows[start : start + 10_000])
            connection.execute(assignments.insert(), given[start : start + 10_000])
        connection.execute(tasks.update().values(slots=1))
        connection.execute(labelers.update().values(judged=len(rows) // LABELERS))


def _next_tasks(store: FeedbackStore) -> None:
    """Let each labeler ask and answer 20 times; the first one has already answered everything before."""
    taken, answered = [], []
    for i in range(LABELERS):
        for _ in range(20):
            start = time.perf_counter()
            task = store.next_task(f"labeler{i}")
            taken.append(time.perf_counter() - start)
            if task is not None:
                start = time.perf_counter()
                store.record(f"labeler{i}", task.id, Answer("ranking", ranks=(1, 2, 3, 4)))
                answered.append(time.perf_counter() - start)
    for name, seconds in (("next task", taken), ("answer", answered)):
        median, worst = statistics.median(seconds), max(seconds)
        print(f"{name}: median {1000 * median:.1f} ms, at most {1000 * worst:.1f} ms, {len(seconds)} times")


def _timed(name: str, call: Callable[[], T]) -> T:
    start, busy = time.perf_counter(), time.process_time()
    result = call()
    print(f"{name}: {time.perf_counter() - start:.1f} s, {time.process_time() - busy:.1f} s of CPU", flush=True)
    return result


if __name__ == "__main__":
    main()
