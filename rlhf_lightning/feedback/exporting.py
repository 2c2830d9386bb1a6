"""Exporting a store's labels as training rows or as projects of other tools, and importing such projects."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from rlhf_lightning.durable import write_durably, write_text_durably
from rlhf_lightning.errors import UserError, blaming
from rlhf_lightning.feedback.argilla import argilla_settings, from_argilla, to_argilla, user_id
from rlhf_lightning.feedback.export import FORMS, write_splits
from rlhf_lightning.feedback.foreign_values import as_object
from rlhf_lightning.feedback.interchange import (
    DEFAULT_NAMES,
    Imported,
    Json,
    Names,
    checked_answers,
    import_into,
)
from rlhf_lightning.feedback.label_studio import from_label_studio, labeling_config, to_label_studio
from rlhf_lightning.feedback.records import Judgement, Task
from rlhf_lightning.feedback.store import FeedbackStore
from rlhf_lightning.value_types import labeler_name

FILES = {"preference": "preferences", "ranked": "ranked", "unpaired": "unpaired"}  # kind -> file name
_LABELERS = "labelers.json"  # next to Argilla's records: UUID -> name


def export_rows(
    store: FeedbackStore,
    folder: str | Path,
    kind: str = "preference",
    method: str = "majority",
    held_out: float = 0.1,
    labelers: Collection[str] | None = None,
    seed: int = 0,
) -> dict[str, int]:
    """Write the rows that a store's judgements decide, and return the number of rows in each file.

    Args:
        store: has the tasks and judgements.
        folder: for `preferences.jsonl` and `preferences_test.jsonl`, or `ranked`, or `unpaired`.
        kind: `preference` for reward models and DPO, `ranked`, or `unpaired` for KTO.
        method: aggregation: `majority`, `dawid_skene` or `bradley_terry`.
        held_out: share of the prompts in the test split; 0 writes none.
        labelers: whose judgements count; None: everybody's.
        seed: seed of the split.

    Raises:
        UserError: nothing is decided, or everything is held out.
    """
    if kind not in FILES:
        raise UserError(f"kind: unknown kind {kind!r}; choose one of {', '.join(FILES)}")
    name = FILES[kind]
    rows = FORMS[name](store.tasks(), judgements_of(store, labelers), method)
    counts = write_splits(_some(rows, store), folder, name, held_out, seed)
    return {f"{name}.jsonl": counts["train"], **({f"{name}_test.jsonl": counts["test"]} if held_out else {})}


def export_project(
    store: FeedbackStore, folder: str | Path, form: str, labelers: Collection[str] | None = None
) -> dict[str, int]:
    """Write a store's tasks and judgements for another tool, and return the number of tasks in each folder.

    Pairs and rankings of K are separate projects, each with its settings, in folders `pair` and `ranking_K`.

    Args:
        store: has the tasks and judgements.
        folder: created if it does not exist.
        form: `argilla` or `label_studio`.
        labelers: whose judgements are written; None: everybody's.

    Raises:
        UserError: the store has no tasks, or mixes text prompts and conversations, which no project can show.
    """
    if form not in _PROJECTS:
        raise UserError(f"format: unknown format {form!r}; choose one of rows, {', '.join(_PROJECTS)}")
    said: dict[str, list[Judgement]] = {}
    for judgement in judgements_of(store, labelers):
        said.setdefault(judgement.task, []).append(judgement)
    kinds = {labeler.name: labeler.kind for labeler in store.labelers()}
    counts: dict[str, int] = {}
    for (kind, size), chats in _projects(store).items():
        if len(chats) > 1:
            raise UserError(
                f"format: some prompts are texts and some conversations, which no project of {form} shows; collect "
                "them in two stores"
            )
        place = Path(folder) / ("pair" if kind == "pair" else f"ranking_{size}")
        tasks = (task for task in store.tasks() if (task.kind, len(task.responses)) == (kind, size))
        records = _one_by_one(tasks, said, partial(_RECORDS[form], kinds=kinds))
        counts[str(place)] = _PROJECTS[form](place, records, said, kind, size, chats.pop())
    if not counts:
        raise UserError(f"feedback.store: {store.name} has no tasks; rlhf-collect makes them")
    return counts


def import_labels(store: FeedbackStore, path: str | Path, form: str, names: Names = DEFAULT_NAMES) -> tuple[int, int]:
    """Import another tool's file into a store, and return the number of its tasks and of new answers.

    If a record cannot be read, nothing is changed. Arguments and exceptions as for `read_labels` and `import_into`.
    """
    imported = read_labels(path, form, names)
    return len(imported), import_into(store, imported)


def read_labels(path: str | Path, form: str, names: Names = DEFAULT_NAMES) -> list[Imported]:
    """Return the content of another tool's file, for `import_into`.

    Args:
        path: JSON as the tool exports it; for Argilla also a folder of `to_disk`, JSON lines or Parquet.
        form: `argilla` or `label_studio`.
        names: names of the question and the fields there.

    Raises:
        UserError: the file cannot be read, with the number of the record; it has no records; or two answers of a user
            to the same task contradict each other.
    """
    file = Path(path)
    if file.is_dir():
        file /= "records.json"
        if form != "argilla" or not file.is_file():
            raise UserError(f"import: {path} is a folder; give the file in it that the other tool has exported")
    if not file.is_file():
        problem = "is not a file" if file.exists() else "does not exist"
        raise UserError(f"import: {path} {problem}; give the file that the other tool has exported")
    from rlhf_lightning.data.files import read_file

    read = _reader(form, file.parent / _LABELERS, names)
    with blaming(f"import: {file}"), _prefixed("import: "):
        records = read_file(file)
    if not records:
        raise UserError(f"import: {file} has no records; export the project again, with its records")
    with blaming(f"import: {file}"), _prefixed(f"import: {file}: "):
        return checked_answers(read(records))


@contextlib.contextmanager
def _prefixed(place: str) -> Iterator[None]:
    """Begin the lines about a file's content with the file, but not those about a key, `names.question`."""
    try:
        yield
    except UserError as error:
        raise error if str(error).startswith("names.") else UserError(f"{place}{error}") from error


def judgements_of(store: FeedbackStore, labelers: Collection[str] | None = None) -> Iterator[Judgement]:
    """Yield the judgements of the given labelers; None: of all.

    Raises:
        UserError: an unknown labeler.
    """
    known = [labeler.name for labeler in store.labelers()]
    for name in labelers or ():
        if name not in known:
            raise UserError(f"labelers: {name!r} is not in {store.name}; allowed: {', '.join(known) or 'nobody yet'}")
    return (each for each in store.judgements() if labelers is None or each.labeler in labelers)


def _some(rows: Iterable[Json], store: FeedbackStore) -> Iterator[Json]:
    """Return the rows; refuse if there are none."""
    empty = True
    for row in rows:
        empty = False
        yield row
    if empty:
        raise UserError(
            f"export: no comparison of {store.name} is decided: it holds no judgements, or all are ties; label more "
            "tasks first"
        )


def _projects(store: FeedbackStore) -> dict[tuple[str, int], set[bool]]:
    """Return (kind, number of responses) -> whether prompts are conversations."""
    found: dict[tuple[str, int], set[bool]] = {}
    for task in store.tasks():
        found.setdefault((task.kind, len(task.responses)), set()).add(not isinstance(task.prompt, str))
    return found


def _write_list(file: Path, rows: Iterable[Json]) -> int:
    """Write a JSON list, one entry per line, never all in memory; return the number of entries."""
    count = 0

    def write(target: Any) -> None:
        nonlocal count
        for row in rows:
            text = json.dumps(row, ensure_ascii=False)
            target.write((",\n" if count else "[\n").encode() + text.encode("utf-8", "replace"))
            count += 1
        target.write(b"\n]\n" if count else b"[]\n")

    file.parent.mkdir(parents=True, exist_ok=True)
    write_durably(file, write)
    return count


Said = Mapping[str, list[Judgement]]


def _one_by_one(tasks: Iterable[Task], said: Said, convert: Callable[..., Iterator[Json]]) -> Iterator[Json]:
    for task in tasks:
        yield from convert([task], said.get(task.id, ()))


def _write_argilla(place: Path, records: Iterable[Json], said: Said, kind: str, size: int, chat: bool) -> int:
    labelers = {each.labeler for judgements in said.values() for each in judgements}
    (place / ".argilla").mkdir(parents=True, exist_ok=True)
    count = _write_list(place / "records.json", records)
    dataset = {"name": f"{place.parent.name}_{place.name}", "guidelines": None, "status": "ready"}
    contents = {
        ".argilla/settings.json": argilla_settings(kind, size, chat),
        ".argilla/dataset.json": dataset,
        _LABELERS: {user_id(name): name for name in sorted(labelers)},
    }
    for name, content in contents.items():
        write_text_durably(place / name, json.dumps(content, indent=2) + "\n")
    return count


def _write_label_studio(place: Path, records: Iterable[Json], said: Said, kind: str, size: int, chat: bool) -> int:
    count = _write_list(place / "tasks.json", records)
    write_text_durably(place / "labeling_config.xml", labeling_config(kind, size, chat))
    return count


_RECORDS = {"argilla": to_argilla, "label_studio": to_label_studio}
_PROJECTS: Mapping[str, Callable[[Path, Iterable[Json], Said, str, int, bool], int]] = {
    "argilla": _write_argilla,
    "label_studio": _write_label_studio,
}


def _reader(form: str, labelers: Path, names: Names) -> Callable[[Iterable[Json]], Iterator[Imported]]:
    if form == "label_studio":
        return lambda rows: from_label_studio(rows, names)
    if form != "argilla":
        raise UserError(f"format: {form!r} is not imported; choose argilla or label_studio")
    known = _named(labelers) if labelers.is_file() else {}
    return lambda rows: from_argilla(rows, names, known)


def _named(file: Path) -> dict[str, str]:
    """Return user -> labeler of the file beside Argilla's records."""
    with blaming(f"import: {file} cannot be read", "restore it, or remove it"):
        known = json.loads(file.read_text(encoding="utf-8"))
    for user, name in as_object(known, f"import: {file}: the content").items():
        try:
            labeler_name(name if isinstance(name, str) else "")
        except ValueError as error:
            raise UserError(f"import: {file}: the name of {user}: found {name!r:.60}; {error}") from error
    return dict(known)
