"""List the phrases that stop a native reader, each with its file, its line and what to write instead.

    python scripts/phrases.py                     everything; exit 1 if a phrase is found
    python scripts/phrases.py docs conf           some folders or files
    python scripts/phrases.py --phrases           the phrases, with an example of each

Looked at are prose and messages: pages, docstrings, comments, strings with a space in them, comments in YAML. Code
blocks are left out, their comments are not. An exact use that is right goes into LEGITIMATE.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parent.parent

_UNITS = (
    "token|row|prompt|second|response|sample|pair|iteration|step|minute|hour|node|run|labeler|seed|epoch|pass|batch|"
    "micro-batch|question|call|request|rank|process|task|judgement|answer|layer|line|side"
)
_COUNTED = (
    "numbers?|once|twice|times|values|seconds|rows|samples|tokens|steps|seeds?|requests?|operations|pairs|responses?|"
    "prompts|judgements|trials?|probability|probabilities|nats?|bytes|MiB|GiB|ms|s|costs?|agents?|loss|most|one|two|"
    "three|four|[0-9]+"
)
_BE = "is|are|was|were"
Kind = Literal["text", "docstring", "function"]


@dataclass(frozen=True)
class Phrase:
    """A pattern that a native reader stumbles over, what to write instead, and an example of both.

    Args:
        pattern: a regular expression, case included; of prose whose lines are joined.
        instead: what to write.
        wrong: a text that it finds.
        right: the same in natural English, in which it finds nothing.
        within: where it is searched: everywhere, in docstrings, or in docstrings of functions.
    """

    pattern: str
    instead: str
    wrong: str
    right: str
    within: Kind = "text"


PHRASES = (
    Phrase(
        rf"\b(?:{_COUNTED}) an? (?:{_UNITS})\b(?! (?:may|can|must|has|had|is|was|of|needs|takes|gets|reads|holds)\b)",
        "per token",
        "one number a token",
        "one number per token",
    ),
    Phrase(
        r"\b[Aa]n? (?:number|value|sample|response|row|pair|label|score|reward|judgement|checkpoint|file) an? "
        r"(?:token|row|prompt|second|response|sample|pair|step|epoch|seed|process|rank|task)\b",
        "one per",
        "a sample a prompt",
        "one sample per prompt",
    ),
    Phrase(
        rf"(?<!\b[Tt]here )\b(?:{_BE}) no (?!(?:longer|more|less|better|worse|larger|smaller|lower|higher|help)\b)",
        "is not a",
        "vLLM is no dependency",
        "vLLM is optional; it is no longer needed",
    ),
    Phrase(
        rf"(?<!\b[Tt]here )\b(?:{_BE}) none\b(?! of\b)", "unknown, missing", "a type that is none", "an unknown type"
    ),
    Phrase(r"\bever the same\b", "always the same", "answers ever the same", "whenever the same answer comes"),
    Phrase(
        r"\b[Aa]llowed (?:is|are)\b|[0-9}] (?:is|are) allowed\b",
        "must be",
        "allowed is 0 to below 1",
        "must be in [0, 1)",
    ),
    Phrase(r"\bof ours\b", "our own; say whose", "no loss of ours", "unknown loss_type"),
    Phrase(r"\bof yours\b", "your own", "a callback of yours", "your own callback"),
    Phrase(r"\b(?:last|former|old) code\b|\bthan before\b", "describe main", "with the last code", "in float32"),
    Phrase(r"\bmeasured again\b|\b[Rr]ead once more\b", "describe main", "was measured again", "was measured"),
    Phrase(
        r"\b[Ss]hort of (?:its|their|the) aims?\b", "misses its target", "Short of its aims is PPO", "PPO misses it"
    ),
    Phrase(
        r"(?:^|(?<=[.;:] ))Of (?:each|every|an?|all|what)\b",
        "begin with the subject",
        "Of each tile, where it is",
        "Yield the slice of each tile",
    ),
    Phrase(
        r"^Whether ", "Return whether", "Whether rows are packed", "Return whether rows are packed", within="docstring"
    ),
    Phrase(
        r"^What ", "Return what", "What the optimiser is told", "Return the optimiser's arguments", within="function"
    ),
    Phrase(r"\bso many\b(?! that\b)", "this many", "at most so many rows", "at most this many rows"),
    Phrase(r"\bso long\b(?! as\b)", "this long", "waits for so long", "waits for this long"),
    Phrase(r"\bsaid to be so\b", "says so", "what was not measured is said to be so", "say what was not measured"),
    Phrase(r"\b(?:lies?|lay) there\b", "is stored", "read as it lies there", "read without a check"),
    Phrase(rf"\b(?:{_BE}) not there\b", "does not exist", "the run is not there", "the run does not exist"),
    Phrase(r"\b(?:tells?|told|says?|said) of\b", "says about", "what it says of a run", "what it says about a run"),
    Phrase(
        r"\bstands? (?:in(?! for\b)|at|on|there|once|before|after|beside|behind|under|above|over)\b",
        "is in, appears",
        "what stands in the table",
        "what is in the table; it stands in for another",
    ),
    Phrase(r"\bformer\b", "previous", "the former weights", "the previous weights"),
    Phrase(
        r"(?<!\bare )(?<!\bwere )\ball the same\b(?=[.,;:)]| and\b|$)",
        "anyway",
        "if it goes on all the same",
        "if all the same rows go on, and others are all the same, it goes on anyway",
    ),
    Phrase(r"\b(?:to|for|by) who\b", "to whoever", "refused to who calls it", "refused to whoever calls it"),
    Phrase(r"\bto the bit\b", "bit for bit", "equal to the bit", "equal bit for bit"),
    Phrase(r"\bmend(?:s|ed|ing)?\b", "fix", "no waiting mends that", "waiting does not fix that"),
    Phrase(r"\banew\b", "again", "it begins anew", "it starts over"),
    Phrase(r"\bbe had\b", "be found", "where it cannot be had", "if it cannot be found"),
    Phrase(r"\bin mid-run\b", "mid-run", "locked in mid-run", "locked mid-run"),
    Phrase(
        rf"\b(?:{_BE}) of (?:an?|its|the|this|another|before|what|all|those|one|two|both)\b"
        r"(?! (?:\w+ )?(?:kind|type|form|size|length|shape)\b)",
        "belongs to, comes from",
        "it is of an earlier run",
        "it belongs to an earlier run",
    ),
    Phrase(r"\bwithout a word\b", "silently", "left out without a word", "left out silently"),
    Phrase(r"\bwhat is there\b", "what exists", "what is there is kept", "what exists is kept"),
    Phrase(r"\b[Nn]othing of\b", "none of it", "nothing of it is kept", "none of it is kept"),
    Phrase(r"\btak(?:en|es?|ing) up\b", "resume", "a run that is taken up", "a run that is resumed"),
    Phrase(r"\bgo(?:es)? in whole\b|\bwholly\b", "completely", "it does not go in whole", "it does not fit completely"),
)

LEGITIMATE = (
    "former = live_run(run.folder, client",  # code that a mutant replaces
    "former = None",
    "known_points(client, former, names",
)
"""Exact texts, long enough to be found nowhere else, in which a phrase is right."""


@dataclass(frozen=True)
class Found:
    """A phrase in a file."""

    file: Path
    line: int
    text: str
    phrase: Phrase

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line}: ...{self.text}... (instead: {self.phrase.instead})"


Prose = tuple[int, str, Kind]
"""First line, text, and what it is: any text, a docstring, or the docstring of a function."""


def paragraphs(page: str) -> Iterator[tuple[int, str]]:
    """Yield the paragraphs of Markdown with their first lines.

    A list item, a heading and a row of a table are a paragraph each; a line of a code block is one if it has a comment,
    and then its comment alone.
    """
    begin, collected, fence = 0, list[str](), ""
    for number, line in enumerate([*page.splitlines(), ""], start=1):
        text = line.strip()
        is_fence = text.startswith(("```", "~~~"))
        starts = is_fence or fence or not text or re.match(r"(?:[-*+]|\d+\.)\s|[#|]|<!--", text)
        if starts and collected:
            yield begin, " ".join(collected)
            collected = []
        if is_fence:
            fence = "" if fence else text
        elif fence or (line.startswith("    ") and not collected and not starts):
            if (comment := re.search(r"(?:^|\s)# (.*)", text)) is not None:
                yield number, comment[1]
        elif text and not text.startswith("<!--"):
            begin = begin if collected else number
            collected.append(text)


def comments(source: str) -> Iterator[tuple[int, str]]:
    """Yield the comments of Python or YAML with their first lines; lines of comment alone are joined."""
    begin, collected = 0, list[str]()
    for number, line in enumerate([*source.splitlines(), ""], start=1):
        whole = re.match(r"\s*#+:? ?(.*)", line)
        if whole is not None:
            begin = begin if collected else number
            collected.append(whole[1])
            continue
        if collected:
            yield begin, " ".join(collected)
            collected = []
        if (trailing := re.search(r"\s#+ (.*)", line)) is not None:
            yield number, trailing[1]


def strings(source: str) -> Iterator[Prose]:
    """Yield the docstrings of Python, and its other strings that have a space; `{}` for what an f-string fills in."""
    skipped, functions = set[int](), set[int]()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            functions.add(id(node.body[0]))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            skipped.add(id(node.value))
            yield node.lineno, node.value.value, "function" if id(node) in functions else "docstring"
        elif isinstance(node, ast.JoinedStr):
            parts = []
            for value in node.values:
                skipped.add(id(value))
                parts.append(str(value.value) if isinstance(value, ast.Constant) else "{}")
            yield node.lineno, "".join(parts), "text"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            yield node.lineno, node.value if " " in node.value else "", "text"


def prose(path: Path) -> Iterator[Prose]:
    """Yield what a reader reads of a file."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        yield from ((line, part, "text") for line, part in paragraphs(text))
    elif path.suffix == ".html":
        yield from (
            (n, re.sub(r"<[^>]+>|{[%{].*?[%}]}", " ", line), "text")
            for n, line in enumerate(text.splitlines(), start=1)
        )
    else:
        yield from ((line, part, "text") for line, part in comments(text))
        if path.suffix == ".py":
            yield from strings(text)


def found(path: Path) -> list[Found]:
    """Return the phrases of a file, without those that are legitimate where they are."""
    hits = []
    for line, text, kind in prose(path):
        joined = " ".join(text.split())
        for right in LEGITIMATE:
            joined = joined.replace(right, "")
        for phrase in PHRASES:
            if phrase.within == "text" or kind == "function" or kind == phrase.within:
                for match in re.finditer(phrase.pattern, joined):
                    hits.append(Found(path, line, joined[max(0, match.start() - 40) : match.end() + 30], phrase))
    return hits


def files(paths: list[Path]) -> list[Path]:
    """Return the files with prose below these paths."""
    every = [file for path in paths for file in ([path] if path.is_file() else sorted(path.rglob("*")))]
    every = [file for file in every if file != Path(__file__).resolve()]  # its examples are wrong on purpose
    return [f for f in every if f.suffix in (".md", ".py", ".yaml", ".html", ".toml") or f.name == "Makefile"]


EVERYTHING = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "Makefile",
    "docs",
    "rlhf_lightning",
    "conf",
    "scripts",
    "examples",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="*", type=Path, default=[ROOT / name for name in EVERYTHING])
    parser.add_argument("--phrases", action="store_true", help="print the phrases and what to write instead")
    given = parser.parse_args()
    if given.phrases:
        print("\n".join(f"not: {p.wrong:45} but: {p.right}" for p in PHRASES))
        return
    hits = [hit for file in files([path.resolve() for path in given.paths]) for hit in found(file)]
    print("\n".join(str(hit) for hit in hits))
    sys.exit(1 if hits else 0)


if __name__ == "__main__":
    main()
