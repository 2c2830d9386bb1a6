"""The cache of a judge's answers: what is not a cache, and what is not an answer."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_lightning.errors import UserError
from rlhf_lightning.judging.cache import AnswerCache
from rlhf_lightning.judging.settings import check_judge


def tables(file: Path) -> list[str]:
    with sqlite3.connect(file) as opened:
        return [name for (name,) in opened.execute("SELECT name FROM sqlite_master")]


@pytest.mark.parametrize("table", ["tasks (id)", "answers (x)"])
def test_a_database_of_something_else_is_refused_and_stays_as_it_is(tmp_path: Path, table: str) -> None:
    file = tmp_path / "feedback.db"
    with sqlite3.connect(file) as opened:
        opened.execute(f"CREATE TABLE {table}")
    before = file.read_bytes()
    with pytest.raises(UserError, match=r"^judge\.cache: .*feedback\.db is a database of something else"):
        AnswerCache(file)
    with pytest.raises(UserError, match=r"^reward\.judge\.cache: .* is a database of something else"):
        check_judge({"model": "m", "cache": str(file)}, "reward.judge.")
    assert file.read_bytes() == before


def test_what_is_not_a_file_is_no_cache(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, found in (("pipe", "is not a file"), ("", "is a folder")):
        with pytest.raises(UserError, match=rf"^judge\.cache: .* {found}; name a file"):
            AnswerCache(tmp_path / name)


def test_a_damaged_entry_is_missing(tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path / "cache.db")
    cache.put({"good": "yes", "other": 5, "broken": "x"})
    with sqlite3.connect(tmp_path / "cache.db") as opened:
        opened.execute("UPDATE answers SET answer = '{bad' WHERE asked = 'broken'")
        opened.execute("INSERT INTO answers VALUES ('bytes', x'ff')")
    asked = ["good", "other", "broken", "bytes", "unknown"]
    assert AnswerCache(tmp_path / "cache.db").get(asked, lambda answer: isinstance(answer, str)) == {"good": "yes"}
    assert tables(tmp_path / "cache.db").count("answers") == 1


BEGUN = """
import os, sqlite3, sys
opened = sqlite3.connect(sys.argv[1])
opened.execute("PRAGMA cache_size = 1")  # pages go to the file before the transaction has ended
opened.executemany("INSERT INTO answers VALUES (?, ?)", [(str(i), "1" * 500) for i in range(1000)])
os._exit(1)
"""


def test_what_a_killed_process_has_begun_to_write_is_taken_back(tmp_path: Path) -> None:
    file = tmp_path / "answers.db"
    AnswerCache(file).put({"asked": {"a": 1}})
    subprocess.run([sys.executable, "-c", BEGUN, str(file)], check=False)
    assert file.with_name("answers.db-journal").exists()
    assert AnswerCache(file).get(["asked", "0"]) == {"asked": {"a": 1}}
