"""Prose and messages are natural English (`scripts/phrases.py` has the phrases), and pages are short enough to read."""

from __future__ import annotations

import importlib
import re
import textwrap
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
README_LINES = 200
PARAGRAPH_LINES, LINE = 6, 100  # a line has 100 characters, however wide the source is
CELL = 500  # characters of a table's cell


def group(path: Path) -> str:
    """Return the page, package or folder that a file belongs to."""
    parts = path.relative_to(ROOT).parts
    if len(parts) == 1 or parts[0] in ("conf", "examples"):
        return parts[0]
    if parts[0] == "docs" and len(parts) == 2:
        return "/".join(parts)
    return "/".join(parts[: min(2, len(parts) - 1)])


def phrases() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "scripts")
        return importlib.import_module("phrases")


PHRASES = phrases()
FILES: dict[str, list[Path]] = defaultdict(list)
for _file in PHRASES.files([ROOT / name for name in PHRASES.EVERYTHING]):
    FILES[group(_file)].append(_file)
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *(ROOT / "docs").rglob("*.md")])


@pytest.mark.parametrize("name", sorted(FILES))
def test_no_phrase_stops_a_native_reader(name: str) -> None:
    found = [str(hit) for file in FILES[name] for hit in PHRASES.found(file)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("phrase", PHRASES.PHRASES, ids=lambda phrase: phrase.wrong)
def test_a_phrase_is_found_in_its_wrong_example_and_not_in_its_right_one(phrase: Any) -> None:
    assert re.search(phrase.pattern, phrase.wrong)
    assert not [other.wrong for other in PHRASES.PHRASES if re.search(other.pattern, phrase.right)]


def test_an_exact_use_that_is_legitimate_is_still_somewhere() -> None:
    texts = [" ".join(file.read_text(encoding="utf-8").split()) for files in FILES.values() for file in files]
    for use in PHRASES.LEGITIMATE:
        assert any(use in text for text in texts), f"{use!r} is nowhere: take it out of the list"


WRONG = {
    "page.md": (
        "# Title\n\nA row has one number\na token.\n\n- a callback\n  of yours\n\n```bash\nrun  # the former one\n```\n"
    ),
    "table.md": "| a | b |\n|---|---|\n| ever the same | fine |\n",
    "module.py": '"""Whether it is right."""\n\nraise ValueError(f"{1} is "\n                 "no model")  # of ours\n',
    "config.yaml": "# at most so\n# many rows\nlimit: 1  # without a word\n",
}


@pytest.mark.parametrize(("name", "count"), [("page.md", 3), ("table.md", 1), ("module.py", 3), ("config.yaml", 2)])
def test_prose_is_found_over_line_breaks_and_in_comments_and_messages(name: str, count: int, tmp_path: Path) -> None:
    (tmp_path / name).write_text(WRONG[name])
    assert len(PHRASES.found(tmp_path / name)) == count


def test_code_is_not_prose(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("```python\nformer = anew\n```\n\n    former = 1\n")
    (tmp_path / "module.py").write_text('former = {"former": 1}\n')
    assert not PHRASES.found(tmp_path / "page.md")
    assert not PHRASES.found(tmp_path / "module.py")


def lines(paragraph: str) -> int:
    """How many lines of 100 characters a paragraph has, the targets of its links left out."""
    return len(textwrap.wrap(re.sub(r"\]\([^)]*\)", "]", paragraph), LINE))


def too_long(page: Path) -> list[str]:
    """The paragraphs, items of lists and cells of tables that are too long."""
    found = []
    for number, text in PHRASES.paragraphs(page.read_text(encoding="utf-8")):
        if text.startswith("|"):
            if any(len(cell) > CELL for cell in re.split(r"(?<!\\)\|", text)):
                found.append(f"{page.name}:{number}: a cell of more than {CELL} characters")
        elif not text.startswith("<") and lines(text) > PARAGRAPH_LINES:
            found.append(f"{page.name}:{number}: {lines(text)} lines: {text[:60]}...")
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_paragraph_has_more_than_six_lines(page: Path) -> None:
    assert not too_long(page), "\n".join(too_long(page))


def test_a_long_paragraph_is_seen_however_it_is_broken(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    words = "word " * 121  # 604 characters, and a space fewer
    page.write_text(f"# Title\n\n{words}\n\n- {words}\n\n{textwrap.fill(words, 60)}\n\n{words[:580]}\n")
    assert len(too_long(page)) == 3


def test_the_readme_is_no_longer_than_a_reader_reads() -> None:
    assert (ROOT / "README.md").read_text(encoding="utf-8").count("\n") <= README_LINES
