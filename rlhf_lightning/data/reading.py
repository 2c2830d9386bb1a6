"""Rows from local files, dataset folders and the Hugging Face hub. Nothing is cached for local sources."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_lightning.data.files import KINDS, Row, data_suffix, read_file, without_none
from rlhf_lightning.disk import lacks_room
from rlhf_lightning.errors import UserError

if TYPE_CHECKING:
    import datasets  # type: ignore[import-untyped]

ALLOWED = (
    f"{KINDS}, a datasets folder, or a hub name such as org/name; `:split` may follow, after a hub name also "
    "`:configuration:split`"
)


def read_rows(source: str | Path, split: str = "train", limit: int | None = None) -> datasets.Dataset:
    """Return the rows of a source, in memory. Arguments and errors as for `read_records`; absent columns are None.

    A column that holds more than one type is kept as JSON.
    """
    import datasets
    import pyarrow  # type: ignore[import-untyped]

    rows = read_records(source, split, limit)
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    try:
        return datasets.Dataset.from_dict(columns)
    except UnicodeEncodeError as error:
        raise UserError(
            f"{source}, row {_broken(rows)}: it holds half of a surrogate pair, which is not text"
        ) from error
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError, pyarrow.ArrowNotImplementedError):
        return datasets.Dataset.from_dict(columns, on_mixed_types="use_json")


def _broken(rows: list[Row]) -> int:
    """Return the number, from 1, of the first row with text that no encoding has."""
    for number, row in enumerate(rows, start=1):
        try:
            json.dumps(row, ensure_ascii=False, default=str).encode()
        except UnicodeEncodeError:
            return number
    return len(rows)


def read_records(source: str | Path, split: str = "train", limit: int | None = None) -> list[Row]:
    """Return the rows of a source as plain objects, as they are written there.

    Args:
        source: a file (see `read_file`); a folder that `datasets` saved, or one with such files named by split; or a
            hub name. `source:split` overrides `split`, and `org/name:configuration:split` picks the configuration of a
            hub data set.
        split: which split of a folder or a hub name; a file has none.
        limit: read at most this many rows.

    Raises:
        UserError: nothing there, not readable (with file and line), no such split, or no rows.
    """
    if limit is not None and limit < 1:
        raise UserError(f"data.limit={limit}: must be at least 1, or null for all rows")
    path, configuration, split = _parts(source, split)
    if path.is_file():
        if path != Path(source).expanduser():
            raise UserError(f"{source}: {path} is a file, and a file has no splits; give it without :{split}")
        rows = read_file(path, limit)
    elif path.is_dir():
        rows = _read_folder(path, split, limit)
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)) and data_suffix(path) is None:
        rows = _read_hub(str(path), configuration, split, limit)
    else:
        raise UserError(f"{source}: no such file or folder; expected {ALLOWED}")
    if not rows:
        raise UserError(f"{source}: no rows found; check the file")
    return rows[:limit]


def _parts(source: str | Path, split: str) -> tuple[Path, str | None, str]:
    """Return path or hub name, configuration and split."""
    path = Path(source).expanduser()
    if path.exists():
        return path, None, split
    if named := re.fullmatch(r"([\w.-]+/[\w.-]+):([^:/]+):([\w.-]+)", str(source)):
        return Path(named[1]), named[2], named[3]
    if named := re.fullmatch(r"(.+):([\w.-]+)", str(source)):
        return Path(named[1]).expanduser(), None, named[2]
    return path, None, split


def _read_folder(folder: Path, split: str, limit: int | None) -> list[Row]:
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        import datasets

        saved = datasets.load_from_disk(str(folder), keep_in_memory=True)
        if not isinstance(saved, datasets.Dataset):
            if split not in saved:
                raise UserError(f"{folder}: no split {split!r}; it has {', '.join(saved)}; write {folder}:<split>")
            saved = saved[split]
        return _records(saved, limit)
    files = sorted(f for f in [*folder.glob("*.*"), *folder.glob("data/*.*")] if data_suffix(f) is not None)
    mine = [f for f in files if re.split(r"[-.]", f.name)[0] == split]
    if not mine:
        found = ", ".join(str(f.relative_to(folder)) for f in files) or "no data file"
        raise UserError(f"{folder}: no file of split {split!r} (such as {split}.jsonl); found {found}")
    rows: list[Row] = []
    for file in mine:
        if limit is None or len(rows) < limit:
            rows += read_file(file, None if limit is None else limit - len(rows))
    return rows


def _records(rows: datasets.Dataset, limit: int | None) -> list[Row]:
    first = rows if limit is None else rows.select(range(min(limit, len(rows))))
    return [without_none(row) for row in first.to_list()]


def _read_hub(name: str, configuration: str | None, split: str, limit: int | None) -> list[Row]:
    import datasets

    which: dict[str, Any] = {} if configuration is None else {"name": configuration}
    bars = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        rows = datasets.load_dataset(name, split=split, **which)
    except Exception as error:  # network, authentication, unknown name or split: every library raises its own class
        if lacks_room(error):
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        config = "" if configuration is None else f" of its configuration {configuration!r}"
        raise UserError(
            f"{name}: no such file or folder, and the hub does not give its split {split!r}{config} ({reason}); "
            f"expected {ALLOWED}"
        ) from error
    finally:
        if bars:
            datasets.enable_progress_bars()
    return _records(rows, limit)
