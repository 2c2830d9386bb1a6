"""Rows from local files, datasets folders and the Hugging Face hub. Nothing is cached for local sources."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_lightning.errors import UserError

if TYPE_CHECKING:
    import datasets  # type: ignore[import-untyped]

ALLOWED = "a .jsonl, .json or .parquet file, a datasets folder, or a hub name such as org/name; `:split` may follow"


def read_rows(source: str | Path, split: str = "train", limit: int | None = None) -> datasets.Dataset:
    """Rows of a source, in memory.

    Args:
        source: a `.jsonl`, `.json` or `.parquet` file; a folder that `datasets` saved, or one that holds such files
            named by split; or a hub name. `source:split` overrides `split`.
        split: which split of a folder or a hub name; a file has none.
        limit: the first so many rows.

    Raises:
        UserError: nothing there, not readable (with file and line), no such split, or no rows.
    """
    if limit is not None and limit < 1:
        raise UserError(f"data.limit={limit}: at least 1 is allowed, or null for all rows")
    path = Path(source).expanduser()
    named = re.fullmatch(r"(.+):([\w.-]+)", str(source))
    if named and not path.exists():
        path, split = Path(named[1]).expanduser(), named[2]
    if path.is_file():
        rows = _read_file(path, limit)
    elif path.is_dir():
        rows = _read_folder(path, split, limit)
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)) and path.suffix not in (".jsonl", ".json", ".parquet"):
        rows = _read_hub(str(path), split)
    else:
        raise UserError(f"{source}: no such file or folder; allowed is {ALLOWED}")
    if len(rows) == 0:
        raise UserError(f"{source}: it holds no rows; check the file")
    return rows if limit is None else rows.select(range(min(limit, len(rows))))


def _read_file(path: Path, limit: int | None) -> datasets.Dataset:
    if path.suffix == ".jsonl":
        return _dataset(path, _json_lines(path, limit))
    if path.suffix == ".json":
        return _dataset(path, _json_array(path, limit))
    if path.suffix == ".parquet":
        return _read_parquet(path)
    raise UserError(f"{path}: files of this kind are not read; allowed is {ALLOWED}")


def _json_lines(path: Path, limit: int | None) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    with path.open(encoding="utf-8") as lines:
        try:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    rows.append(_json_object(line, f"{path}:{number}"))
                if limit is not None and len(rows) >= limit:
                    break
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: it is not UTF-8 text ({error.reason} at byte {error.start})") from error
    return rows


def _json_object(line: str, place: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{place}: not JSON ({error.msg} at column {error.colno}): {line.strip()[:60]!r}") from error
    if not isinstance(row, dict):
        raise UserError(f"{place}: a row must be a JSON object with named columns, found {type(row).__name__}")
    return row


def _json_array(path: Path, limit: int | None) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8")
    if not text.lstrip().startswith("["):
        return _json_lines(path, limit)
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not JSON ({error.msg} at column {error.colno})") from error
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise UserError(f"{path}, row {number}: a row must be a JSON object, found {type(row).__name__}")
    return rows


def _dataset(path: Path, rows: list[dict[str, Any]]) -> datasets.Dataset:
    import datasets
    import pyarrow  # type: ignore[import-untyped]

    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    try:
        return datasets.Dataset.from_dict(columns)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError) as error:
        kinds = {name: sorted({type(v).__name__ for v in values if v is not None}) for name, values in columns.items()}
        mixed = "; ".join(f"{name}: {', '.join(kind)}" for name, kind in kinds.items() if len(kind) > 1)
        raise UserError(f"{path}: a column must hold one type in all rows, found {mixed or error}") from error


def _read_parquet(path: Path) -> datasets.Dataset:
    import datasets
    import pyarrow
    from datasets.table import InMemoryTable  # type: ignore[import-untyped]
    from pyarrow import parquet

    try:
        return datasets.Dataset(InMemoryTable(parquet.read_table(path)))
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{path}: not a Parquet file ({error})") from error


def _read_folder(folder: Path, split: str, limit: int | None) -> datasets.Dataset:
    import datasets

    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        saved = datasets.load_from_disk(str(folder), keep_in_memory=True)
        if isinstance(saved, datasets.Dataset):
            return saved
        if split not in saved:
            raise UserError(f"{folder}: no split {split!r}; it has {', '.join(saved)}; write {folder}:<split>")
        return saved[split]
    files = sorted(
        f for f in [*folder.glob("*.*"), *folder.glob("data/*.*")] if f.suffix in (".jsonl", ".json", ".parquet")
    )
    mine = [f for f in files if re.split(r"[-.]", f.name)[0] == split]
    if not mine:
        found = ", ".join(str(f.relative_to(folder)) for f in files) or "no .jsonl, .json or .parquet file"
        raise UserError(f"{folder}: no file of split {split!r} (such as {split}.jsonl); found {found}")
    return datasets.concatenate_datasets([_read_file(f, limit) for f in mine])


def _read_hub(name: str, split: str) -> datasets.Dataset:
    import datasets

    bars = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(name, split=split)
    except Exception as error:  # network, authentication, unknown name or split: each library's own class
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{name}: no such file or folder, and the hub does not give its split {split!r} ({reason}); "
            f"allowed is {ALLOWED}"
        ) from error
    finally:
        if bars:
            datasets.enable_progress_bars()
