"""Build the documentation site into site/: the pages of docs/, and a reference made from the source.

    python scripts/build_docs.py

A broken link or anchor, a picture that does not exist, a docstring that does not parse, a formula that is not drawn, or
a page that would load something from the network ends it with exit code 1.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from documentation.command_pages import command_pages
from documentation.mathml import with_mathml
from documentation.python_pages import python_pages
from documentation.setting_pages import setting_pages
from documentation.staging import ROOT, BrokenLinkError, stage
from documentation.tables import with_prose_marked

COMPLAINT = re.compile(r"^(griffe|ERROR|WARNING|mkdocstrings)\b.*", re.MULTILINE)
UNFILLED = re.compile(r"<p>::: ([\w.]+)")
UNDRAWN = re.compile(r"<m(?:text|tt|i|o|n)[^>]*>([^<]*\\[^<]*)<")  # TeX that is left in a formula
LOADED = re.compile(r"""<(?:script|img|iframe|link(?=[^>]*stylesheet))[^>]*(?:src|href)=["']?(https?:[^"'\s>]+)""")


def main() -> int:
    """Build the site and return the exit code."""
    try:
        config = stage(ROOT / "build" / "docs", {**setting_pages(), **command_pages(), **python_pages()})
    except BrokenLinkError as error:
        print(error, file=sys.stderr)
        return 1
    if complaints := build(config):
        print(complaints, file=sys.stderr)
        return 1
    site = ROOT / "site"
    shutil.rmtree(site, ignore_errors=True)
    shutil.copytree(config.parent / "site", site)
    print(f"{len([*site.rglob('*.html')])} pages; to look at them: python -m http.server -d {site.name}")
    return 0


def build(config: Path) -> str:
    """Build a site, and return what is wrong with it; empty if nothing is."""
    zensical = Path(sys.executable).with_name("zensical")
    done = subprocess.run(
        [zensical, "build", "--clean", "--strict", "--config-file", config],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    said = re.sub(r"\x1b\[[\d;]*m", "", done.stdout).partition("Traceback (most recent")[0]
    if done.returncode or COMPLAINT.search(said):
        return said
    pages = [*(config.parent / "site").rglob("*.html")]
    if empty := {name for page in pages for name in UNFILLED.findall(page.read_text(encoding="utf-8"))}:
        return f"no docstring was filled in: {', '.join(sorted(empty))}"
    outside = {found for page in pages for found in finish(page)}
    if undrawn := {text for page in pages for text in UNDRAWN.findall(page.read_text(encoding="utf-8"))}:
        return f"formulas with TeX that is not drawn: {', '.join(sorted(undrawn))}"
    return f"these would be loaded from the network: {', '.join(sorted(outside))}" if outside else ""


def finish(page: Path) -> list[str]:
    """Put the formulas of a built page in, mark long cells, and return what it would load from the network."""
    text = with_prose_marked(with_mathml(page.read_text(encoding="utf-8")))
    page.write_text(text, encoding="utf-8")
    return LOADED.findall(text)


if __name__ == "__main__":
    sys.exit(main())
