"""From judgements to rows that reward models, DPO and KTO read."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_lightning.content_hashes import content_hash
from rlhf_lightning.durable import write_durably
from rlhf_lightning.errors import UserError, writing
from rlhf_lightning.feedback.aggregation import Decisions, decide
from rlhf_lightning.feedback.records import Judgement, Prompt, Task, dense_ranks
from rlhf_lightning.feedback.votes import read_votes

Row = dict[str, Any]
_WON, _LOST = 1, 2  # bits: a response may have done both


def preference_rows(tasks: Iterable[Task], judgements: Iterable[Judgement], method: str = "majority") -> Iterator[Row]:
    """Yield one row per decided pair, in the order of the tasks.

    Columns: `prompt`, `chosen`, `rejected`; `margin`, the mean strength for the chosen answer (3: much better; in a
    ranking, the distance of the ranks); `agreement`, the share of labelers who chose it; `task`, its id. Ties are left
    out, as are pairs that more than half of the labelers call a tie, or neither.

    Args:
        tasks: the store's tasks, iterated once.
        judgements: the store's judgements.
        method: aggregation: `majority`, `dawid_skene` or `bradley_terry`.
    """
    decided = _ByTask(decide(read_votes(judgements), method))
    for task in tasks:
        for first, second, probability, margin, share in decided.of(task.id):
            if probability == 0.5:
                continue
            best, worst = (first, second) if probability > 0.5 else (second, first)
            yield {
                "prompt": task.prompt,
                "chosen": _said(task, best),
                "rejected": _said(task, worst),
                "margin": round(max(0.0, margin), 4),
                "agreement": round(share, 4),
                "task": task.id,
            }


def ranked_rows(tasks: Iterable[Task], judgements: Iterable[Judgement], method: str = "majority") -> Iterator[Row]:
    """Yield one row per judged task: `prompt` and its `responses`, best first; `ranks` if some are tied.

    Several labelers' rankings are combined by decided pairs: a response ranks by how many others it beats, with half a
    point for a tie (Copeland).
    """
    decided = _ByTask(decide(read_votes(judgements), method))
    for task in tasks:
        points = [0.0] * len(task.responses)
        rows = list(decided.of(task.id))
        for first, second, probability, *_ in rows:
            points[first] += (probability > 0.5) + 0.5 * (probability == 0.5)
            points[second] += (probability < 0.5) + 0.5 * (probability == 0.5)
        if not rows:
            continue
        order = sorted(range(len(points)), key=lambda i: -points[i])
        row: Row = {"prompt": task.prompt, "responses": [_said(task, i) for i in order]}
        if len(set(points)) < len(points):
            row["ranks"] = list(dense_ranks([-points[i] for i in order]))
        yield {**row, "task": task.id}


def unpaired_rows(tasks: Iterable[Task], judgements: Iterable[Judgement], method: str = "majority") -> Iterator[Row]:
    """Yield `prompt`, `completion` and `label` (desirable or not) of judged responses, each once per prompt.

    A response that wins all its decided pairs, in all tasks with its prompt, is desirable, one that loses all of them
    is not; one in between, or in no decided pair, is left out. If more than half of the labelers said `neither` about a
    pair, both responses lose. `task` is the first task that decides about the response.
    """
    neither: dict[str, int] = defaultdict(int)
    count: dict[str, int] = defaultdict(int)

    def counted() -> Iterator[Judgement]:
        for judgement in judgements:
            if not judgement.repeat and judgement.answer.verdict != "skip":
                count[judgement.task] += 1
                neither[judgement.task] += judgement.answer.verdict == "neither"
            yield judgement

    decided = _ByTask(decide(read_votes(counted()), method))
    found: dict[bytes, int] = {}  # a hash of prompt and response -> _WON, _LOST, or both
    with tempfile.TemporaryFile("w+", encoding="utf-8") as rows:  # a later task may contradict the first rows
        for task in tasks:
            bad = 2 * neither.get(task.id, 0) > count.get(task.id, 0)
            outcomes = {0: _LOST, 1: _LOST} if bad else _won_and_lost(decided.of(task.id))
            for position, outcome in sorted(outcomes.items()):
                key = content_hash([task.prompt, task.responses[position].text])
                if (number := bytes.fromhex(key)) not in found:
                    completion = _said(task, position)
                    row = {"prompt": task.prompt, "completion": completion, "label": key, "task": task.id}
                    rows.write(json.dumps(row) + "\n")
                found[number] = found.get(number, 0) | outcome
        rows.seek(0)
        for line in rows:
            row = json.loads(line)
            if (outcome := found[bytes.fromhex(row["label"])]) != _WON | _LOST:
                yield {**row, "label": outcome == _WON}


def _won_and_lost(pairs: Iterable[tuple[int, int, float, float, float]]) -> dict[int, int]:
    """Return position -> _WON, _LOST, or both, of the responses in decided pairs."""
    found: dict[int, int] = defaultdict(int)
    for first, second, probability, *_ in pairs:
        if probability != 0.5:
            found[first] |= _WON if probability > 0.5 else _LOST
            found[second] |= _LOST if probability > 0.5 else _WON
    return found


FORMS = {"preferences": preference_rows, "ranked": ranked_rows, "unpaired": unpaired_rows}


def is_held_out(prompt: Prompt, share: float, seed: int = 0) -> bool:
    """Return whether a prompt is held out. That depends on the prompt alone, so it stays there in later rounds."""
    digest = hashlib.sha256(f"{seed}:{content_hash(prompt)}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def write_splits(
    rows: Iterable[Row], folder: str | Path, name: str = "preferences", held_out: float = 0.1, seed: int = 0
) -> dict[str, int]:
    """Write `{name}.jsonl` and `{name}_test.jsonl`, with no prompt in both, and return the number of rows in each.

    Args:
        rows: iterated once, never all in memory.
        folder: created if it does not exist.
        name: base name of the files.
        held_out: share of the prompts in the test split; 0 writes none, and removes that of an earlier export.
        seed: seed of the split.

    Raises:
        UserError: the share is not in [0, 1), or all rows are held out.
        DiskError: the disk does not accept them; files of an earlier export stay unchanged.
    """
    if not 0 <= held_out < 1:
        raise UserError(f"held_out: {held_out}; it must be in [0, 1)")
    counts = {"train": 0, "test": 0}
    root = Path(folder)
    with writing(root):
        root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=root) as test:

        def write(file: Any) -> None:
            for row in rows:
                split = "test" if is_held_out(row["prompt"], held_out, seed) else "train"
                counts[split] += 1
                line = json.dumps(row, ensure_ascii=False).encode("utf-8", "replace")  # UTF-8 has no lone surrogates
                (test if split == "test" else file).write(line + b"\n")

        write_durably(root / f"{name}.jsonl", write, lambda _: _see_what_is_left(counts))
        test.seek(0)
        if held_out:
            write_durably(root / f"{name}_test.jsonl", lambda file: shutil.copyfileobj(test, file))
        else:  # the held-out prompts of an earlier export are now trained on
            (root / f"{name}_test.jsonl").unlink(missing_ok=True)
    return counts


def _see_what_is_left(counts: dict[str, int]) -> None:
    if counts["test"] and not counts["train"]:
        raise UserError(f"held_out: all {counts['test']} rows are held out; lower it, or label more prompts")


class _ByTask:
    """Decisions by task."""

    def __init__(self, decisions: Decisions) -> None:
        self._decisions = decisions
        self._number = {task: i for i, task in enumerate(decisions.tasks)}
        self._start = np.searchsorted(decisions.task, np.arange(len(decisions.tasks) + 1))

    def of(self, task: str) -> Iterator[tuple[int, int, float, float, float]]:
        """Yield first, second, probability, margin and share of each pair."""
        number = self._number.get(task)
        if number is None:
            return
        found = self._decisions
        for i in range(self._start[number], self._start[number + 1]):
            near = 0.5 if abs(found.probability[i] - 0.5) < 1e-9 else float(found.probability[i])
            yield int(found.first[i]), int(found.second[i]), near, float(found.margin[i]), float(found.share[i])


def _said(task: Task, position: int) -> Prompt:
    """Return a response in the form of its prompt."""
    text = task.responses[position].text
    return text if isinstance(task.prompt, str) else [{"role": "assistant", "content": text}]
