"""A judge as a labeler: it answers a store's tasks, or is compared with people on rows that they have labelled."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_lightning.data.report import blamed_on
from rlhf_lightning.durable import write_durably
from rlhf_lightning.errors import UserError
from rlhf_lightning.feedback.agreement import agreement_report
from rlhf_lightning.feedback.coefficients import Interval, share_interval
from rlhf_lightning.feedback.judge import PositionBias, answer_of, comparisons_of, position_bias
from rlhf_lightning.feedback.judging_rows import answered, labelled
from rlhf_lightning.feedback.records import Task
from rlhf_lightning.feedback.store import FeedbackStore
from rlhf_lightning.judging.comparing import Compared
from rlhf_lightning.judging.judge import Judge

AT_ONCE = 32  # tasks between two writes to the store
Progress = Callable[[int, int], None]  # (done, total)


@dataclass(frozen=True)
class Judged:
    """The results of a judge's work.

    Args:
        tasks: number of tasks or rows that it judged.
        known: number of tasks that it had judged before.
        refused: number of tasks or rows without a verdict that can be parsed, or that were too long for it.
        bias: its position bias, over all comparisons.
        agreement: with the people who judged the same tasks, or with the labels of the rows; a tie of the judge counts
            half.
    """

    tasks: int
    known: int
    refused: int
    bias: PositionBias
    agreement: Interval

    def flat(self) -> dict[str, Any]:
        """Return the results as one flat object, for summary.json."""
        found: dict[str, Any] = {"tasks": self.tasks, "known": self.known, "refused": self.refused}
        named = {"agreement": self.agreement, "first_position": self.bias.first, "consistent": self.bias.consistent}
        for name, interval in named.items():
            values = interval.as_dict()
            found |= {name: values["value"], f"{name}_low": values["low"], f"{name}_high": values["high"]}
        return found


def judge_store(
    store: FeedbackStore,
    judge: Judge,
    labeler: str = "judge",
    tie_below: float = 0.0,
    limit: int | None = None,
    progress: Progress = lambda done, total: None,
) -> Judged:
    """Answer a store's tasks as a labeler of kind `model`, skipping those that it has already answered.

    Judgements are written to the store every few tasks, so that a killed run continues where it was. They count towards
    a task's overlap like those of people.

    Args:
        store: has the tasks; receives the judgements.
        judge: answers the tasks.
        labeler: its name in the store.
        tie_below: a probability within this of one half is a tie.
        limit: the most tasks of this call; None: all.
        progress: called with the number of judged tasks.

    Raises:
        UserError: there are no tasks, the labeler is known as a person, the judge cannot be reached, or it gives no
            verdict on any task.
    """
    known = {each.name: each.kind for each in store.labelers()}
    if known.get(labeler) != "model":
        store.add_labeler(labeler, "model")
    done_before = {each.task for each in store.judgements() if each.labeler == labeler and not each.repeat}
    waiting = [task.id for task in store.tasks() if task.id not in done_before][:limit]
    if not waiting and not done_before:
        raise UserError(f"feedback.store: {store.name} has no tasks; rlhf-collect makes them")
    kept: list[Compared] = []
    refused = 0
    for start in range(0, len(waiting), AT_ONCE):
        tasks = [store.task(each) for each in waiting[start : start + AT_ONCE]]
        for task, found in zip(tasks, _compared(judge, tasks), strict=True):
            if found is None:
                refused += 1
                continue
            kept += found
            store.record(labeler, task.id, answer_of(task, found, tie_below))
        progress(min(start + AT_ONCE, len(waiting)), len(waiting))
    if waiting and refused == len(waiting) and not done_before:
        raise _no_verdict(f"{refused} tasks")
    return Judged(len(waiting) - refused, len(done_before), refused, position_bias(kept), _with_people(store, labeler))


def judge_rows(
    rows: Iterable[Mapping[str, Any]],
    judge: Judge,
    folder: str | Path,
    tie_below: float = 0.0,
    limit: int | None = None,
    seed: int = 0,
    progress: Progress = lambda done, total: None,
    source: str = "data",
) -> Judged:
    """Judge rows that people have labelled, write `verdicts.jsonl`, and return how far the judge agrees with them.

    Args:
        rows: `prompt`, `chosen` and `rejected`, in any form that training reads; the order shown is random.
        judge: answers the rows.
        folder: for `verdicts.jsonl`, one line per row: `row` (its number from 1), `probability` of the chosen answer,
            `by_order` the same as shown and swapped, `principle`, and `reasons` if there are any.
        tie_below: a probability within this of one half is a tie.
        limit: judge at most this many rows.
        seed: seed of the order.
        progress: called with the number of judged rows.
        source: the rows' file, named in messages.

    Raises:
        UserError: a row cannot be read, its two answers are the same, the judge cannot be reached, or it gives no
            verdict on any row.
    """
    read = []
    for index, row in enumerate(islice(rows, limit)):
        with blamed_on(source, index):
            read.append(labelled(index + 1, row, seed))
    found: list[Compared | None] = []
    for start in range(0, len(read), AT_ONCE):
        found += judge.compare([each.comparison for each in read[start : start + AT_ONCE]])
        progress(len(found), len(read))
    lines = [each.verdict(said) for each, said in zip(read, found, strict=True) if said is not None]
    if read and not lines:
        raise _no_verdict(f"{len(read)} rows")
    Path(folder).mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    write_durably(Path(folder) / "verdicts.jsonl", lambda file: file.write(text.encode("utf-8", "replace")))
    chosen = np.array([line["probability"] for line in lines])
    right = np.where(np.abs(chosen - 0.5) <= tie_below, 0.5, (chosen > 0.5).astype(np.float64))
    agreement = share_interval(right, np.ones(len(lines)))
    return Judged(len(lines), 0, len(read) - len(lines), position_bias([x for x in found if x is not None]), agreement)


def revise_rows(
    rows: Iterable[Mapping[str, Any]],
    judge: Judge,
    folder: str | Path,
    rounds: int = 1,
    limit: int | None = None,
    progress: Progress = lambda done, total: None,
    source: str = "revise",
) -> tuple[int, int]:
    """Let a judge criticise and revise answers; return how many were revised and how many left out.

    Args:
        rows: `prompt` and `completion`, or `messages` that end with the assistant's answer.
        judge: criticises and revises.
        folder: for `revisions.jsonl`, rows for SFT, and `chains.jsonl`, with each critique.
        rounds: rounds of critique and revision per answer.
        limit: revise at most this many rows.
        progress: called with the number of revised rows.
        source: the rows' file, named in messages.

    Raises:
        UserError: a row cannot be read, the judge cannot be reached, or it wrote nothing at all.
    """
    read = []
    for index, row in enumerate(islice(rows, limit)):
        with blamed_on(source, index):
            read.append(answered(row))
    kept = []
    for start in range(0, len(read), AT_ONCE):
        part = read[start : start + AT_ONCE]
        kept += [each for each in judge.revise([p for p, _ in part], [r for _, r in part], rounds) if each is not None]
        progress(start + len(part), len(read))
    if not kept:
        raise UserError(f"judge.model: it revised none of {len(read)} answers, or they are too long for it")
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, lines in (("chains", [each.chain() for each in kept]), ("revisions", [each.row() for each in kept])):
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode("utf-8", "replace")
        write_durably(Path(folder) / f"{name}.jsonl", _writer(text))
    return len(kept), len(read) - len(kept)


def judged_lines(found: Judged, whom: str) -> list[str]:
    """Return what rlhf-judge prints.

    Args:
        found: the judge's results.
        whom: names what the judge is compared with.
    """
    known = f", {found.known} before" if found.known else ""
    refused = f"; no verdict on {found.refused} (it does not parse, or is too long)" if found.refused else ""
    lines = [f"judged: {found.tasks}{known}{refused}"]
    if found.agreement.count:
        lines.append(f"agrees with {whom} in {' of '.join(_share(found.agreement))}")
    if found.bias.first.count:
        first, same = _share(found.bias.first), _share(found.bias.consistent)
        lines.append(f"position: the first answer gets {first[0]} on average (50%: no bias)")
        lines.append(f"the verdict is the same in both orders in {same[0]} of {same[1]}")
    return lines


def _share(interval: Interval) -> tuple[str, str]:
    ends = "" if math.isnan(interval.low) else f" ({100 * interval.low:.0f} to {100 * interval.high:.0f})"
    return f"{100 * interval.value:.1f}%{ends}", str(interval.count)


def _compared(judge: Judge, tasks: Sequence[Task]) -> Iterator[list[Compared] | None]:
    """Yield all comparisons of each task; None if the judge gives no verdict on one of them."""
    pairs = [comparisons_of(task) for task in tasks]
    found = iter(judge.compare([each for of_task in pairs for each in of_task]))
    for of_task in pairs:
        said = list(islice(found, len(of_task)))
        whole = [each for each in said if each is not None]
        yield whole if len(whole) == len(said) else None


def _with_people(store: FeedbackStore, labeler: str) -> Interval:
    """Return the share of pairs of a judge's and a person's vote that agree."""
    kinds = {each.name: each.kind for each in store.labelers()}
    heard = {labeler, *(name for name, kind in kinds.items() if kind == "person")}
    judgements = (each for each in store.judgements() if each.labeler in heard)
    named = {name: "judge" if name == labeler else kinds[name] for name in heard}
    report = agreement_report(store.tasks(), judgements, named, draws=1)
    return report.between_kinds.get("judge-person", Interval(float("nan"), float("nan"), float("nan"), 0))


def _no_verdict(asked: str) -> UserError:
    return UserError(
        f"judge.model: no verdict on any of {asked}: its answers do not parse, or they are too long for it; "
        "choose another judge.by, or another judge"
    )


def _writer(content: bytes) -> Callable[[Any], object]:
    return lambda file: file.write(content)
