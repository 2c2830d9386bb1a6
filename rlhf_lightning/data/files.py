"""Rows of one file: JSON lines, a JSON array, CSV, TSV (each plain or gzipped) or Parquet."""

from __future__ import annotations

import ast
import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any

from rlhf_lightning.errors import UserError

TEXT_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv")
KINDS = "a .jsonl, .json, .csv, .tsv (each also with .gz) or .parquet file"
# A cell of these cannot be plain text.
LIST_COLUMNS = ("messages", "responses", "ranks", "tools", "completions", "labels")
TEXT_OR_LIST_COLUMNS = ("prompt", "completion", "chosen", "rejected", "reward", "chat_template_kwargs")
NESTED = "the JSON is nested too deeply; check the row, or leave that column out"

Row = dict[str, Any]


def data_suffix(path: Path) -> str | None:
    """Return the kind of a data file by its name, without `.gz`; None for an unsupported kind.

    >>> data_suffix(Path("rows.jsonl.gz")), data_suffix(Path("rows.txt"))
    ('.jsonl', None)
    """
    name = path.name.lower()
    if name.endswith(".parquet"):
        return ".parquet"
    return next((suffix for suffix in TEXT_SUFFIXES if name.removesuffix(".gz").endswith(suffix)), None)


def read_file(path: Path, limit: int | None = None) -> list[Row]:
    """Return the rows of a file as they are written there, at most the first `limit`: later ones are not looked at.

    Raises:
        UserError: an unsupported or unreadable file, with file and line.
    """
    suffix = data_suffix(path)
    if suffix is None:
        raise UserError(f"{path}: unknown kind of file; expected {KINDS}")
    if suffix == ".parquet":
        return _parquet(path, limit)
    if suffix == ".jsonl":
        with _open(path, "rb") as lines:
            return list(islice(_json_lines(path, lines), limit))
    with _open(path, "rt", encoding="utf-8-sig", newline="") as lines:
        if suffix in (".csv", ".tsv"):
            return list(islice(_table(path, lines, "," if suffix == ".csv" else "\t"), limit))
        text = lines.read()
    if text.lstrip().startswith("["):
        return _json_array(path, text)[:limit]
    return list(islice(_json_lines(path, io.BytesIO(text.encode())), limit))


def without_none(value: Any) -> Any:
    """Return the value without the None that a columnar file stores where a row, or a message, lacks a column."""
    if isinstance(value, dict):
        return {name: without_none(inner) for name, inner in value.items() if inner is not None}
    return [without_none(inner) for inner in value] if isinstance(value, list) else value


@contextmanager
def _open(path: Path, mode: str, **options: Any) -> Iterator[IO[Any]]:
    """Open the file, decompressed; an error becomes one line."""
    try:
        unpack: Any = gzip.open if path.name.lower().endswith(".gz") else open
        with unpack(path, mode, **options) as file:
            yield file
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: it is not UTF-8 text ({error.reason} at byte {error.start})") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: it is not a complete gzip file ({error})") from error


def _json_lines(path: Path, lines: Iterable[bytes]) -> Iterator[Row]:
    """Yield the rows. Lines end only at a newline: U+2028 and U+0085 may occur inside a JSON string."""
    for number, line in enumerate(lines, start=1):
        place = f"{path}:{number}"
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{place}: it is not UTF-8 text ({error.reason} at byte {error.start})") from error
        if text.strip():
            row = _parse(text, place)
            if not isinstance(row, dict):
                raise UserError(f"{place}: a row must be a JSON object with named columns, found {type(row).__name__}")
            yield row


def _parse(line: str, place: str) -> Any:
    try:
        return json.loads(line, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise UserError(f"{place}: not JSON ({error.msg} at column {error.colno}): {line.strip()[:60]!r}") from error
    except RecursionError as error:
        raise UserError(f"{place}: {NESTED}") from error
    except ValueError as error:
        raise UserError(f"{place}: {error}") from error


def _unique(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object has the key {twice!r} twice, so one of the two would be lost; rename one")
    return row


def _json_array(path: Path, text: str) -> list[Row]:
    try:
        rows = json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not JSON ({error.msg} at column {error.colno})") from error
    except RecursionError as error:
        raise UserError(f"{path}: {NESTED}") from error
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise UserError(f"{path}, row {number}: a row must be a JSON object, found {type(row).__name__}")
    return list(rows)


def _table(path: Path, lines: Iterable[str], delimiter: str) -> Iterator[Row]:
    """Yield the rows of a table with a header; an empty cell is an absent column."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # a long text is one cell
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        header = next(reader, [])
        for name in header:
            if header.count(name) > 1:
                raise UserError(f"{path}:1: the column {name!r} appears twice; rename one")
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                raise UserError(
                    f"{path}:{reader.line_num}: {len(cells)} cells for {len(header)} columns ({', '.join(header)}); "
                    "put text that holds the separator in double quotes"
                )
            place = f"{path}:{reader.line_num}"
            yield {name: _cell(name, cell, place) for name, cell in zip(header, cells, strict=True) if cell}
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: not a table ({error})") from error


def _cell(name: str, cell: str, place: str) -> Any:
    """Return a cell as text, or as the list of messages, answers or numbers that it spells out in JSON or Python."""
    spelled = cell.lstrip()[:1]
    if not (name in LIST_COLUMNS or (name in TEXT_OR_LIST_COLUMNS and spelled in ("[", "{"))):
        return cell
    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(cell)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        messages = isinstance(value, list) and value and all(isinstance(part, dict) for part in value)
        other = {"chat_template_kwargs": dict, "reward": list}.get(name)
        if name in LIST_COLUMNS or messages or (other is not None and isinstance(value, other)):
            return value
        return cell  # text that only looks like a list
    if name in LIST_COLUMNS:
        raise UserError(f"{place}: {name}: expected a list, as JSON; found {cell[:60]!r}")
    return cell


def _parquet(path: Path, limit: int | None) -> list[Row]:
    import pyarrow  # type: ignore[import-untyped]
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: not a Parquet file ({str(error).splitlines()[0]})") from error
    return [without_none(row) for row in table.slice(0, limit).to_pylist()]
