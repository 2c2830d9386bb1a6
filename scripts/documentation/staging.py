"""The pages as the generator reads them: those of docs/, the generated ones, and the navigation over both."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from documentation.setting_pages import REPOSITORY

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"(!?\[[^\]\n]*\]\(|^\[[^\]\n]+\]: )([^)\s]+)(\)|$)", re.MULTILINE)
CODE = re.compile(r"(^```.*?^```|`[^`\n]+`)", re.DOTALL | re.MULTILINE)
# Files beside docs/ that are pages of the site as well.
BESIDE = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}


class BrokenLinkError(Exception):
    """A page points to a file that does not exist."""


def with_site_links(text: str, page: Path, root: Path = ROOT) -> str:
    """Return a page whose links to files outside docs/ lead to the code host, or to the page made from the file.

    Args:
        text: Markdown.
        page: the file it is from: links are relative to it.
        root: of the checkout.

    Raises:
        BrokenLinkError: a link, or a picture, leads nowhere.
    """
    parts = CODE.split(text)  # code at odd places
    parts[::2] = [LINK.sub(lambda match: _site_link(match, page, root), part) for part in parts[::2]]
    return "".join(parts)


def _site_link(match: re.Match[str], page: Path, root: Path) -> str:
    target, hash_, anchor = match[2].partition("#")
    on_host = re.fullmatch(rf"{REPOSITORY}/(?:blob|tree)/main/(.*)", target)
    if not target or (on_host is None and re.match(r"[a-z]+:", target)):
        return match[0]
    file = (root / on_host[1] if on_host is not None else page.parent / target).resolve()
    if not file.exists() or not file.is_relative_to(root):
        raise BrokenLinkError(f"{page.relative_to(root)}: {target} does not exist")
    docs = root / "docs"
    depth = len(page.parent.relative_to(docs).parts) if page.is_relative_to(docs) else 0
    own = str(file.relative_to(root))
    if file.is_relative_to(docs) and file.is_file():
        new = str(file.relative_to(docs)) if not page.is_relative_to(docs) else target
    elif own in BESIDE:
        new = "../" * depth + BESIDE[own]
    else:
        new = f"{REPOSITORY}/{'tree' if file.is_dir() else 'blob'}/main/{own}"
    return f"{match[1]}{new}{hash_}{anchor}{match[3]}"


def site_pages(root: Path = ROOT) -> dict[str, str]:
    """Return path -> Markdown of the pages that are written by hand, links made those of the site."""
    docs = root / "docs"
    files = {str(file.relative_to(docs)): file for file in sorted(docs.rglob("*.md"))}
    files |= {name: root / file for file, name in BESIDE.items()}
    return {name: with_site_links(file.read_text(encoding="utf-8"), file, root) for name, file in files.items()}


def with_key_links(pages: Mapping[str, str]) -> dict[str, str]:
    """Return pages of which those about an algorithm end with a link to its keys."""
    linked = dict(pages)
    for name, text in pages.items():
        option = re.fullmatch(r"algorithms/(\w+)\.md", name)
        keys = f"reference/config/algorithm/{option[1]}.md" if option is not None else ""
        if keys in pages:
            linked[name] = f"{text.rstrip()}\n\n## Every key\n\n[`algorithm={option[1]}` in the reference](../{keys})\n"
    return linked


def navigation_pages(entries: Any) -> Iterator[str]:
    """Yield the pages that a navigation names, in its order."""
    for entry in entries:
        if isinstance(entry, Mapping):
            for value in entry.values():
                yield from navigation_pages(value)
        else:
            yield entry


def filled(entries: Any, pages: Iterable[str]) -> list[Any]:
    """Return a navigation whose patterns (`algorithms/*`, `*`) are the pages of that folder that are named nowhere.

    Pages that are named and not there are left out, and sections that nothing is left of.
    """
    return _filled(entries, sorted(pages), {page for page in navigation_pages(entries) if not page.endswith("*")})


def _filled(entries: Any, pages: list[str], named: set[str]) -> list[Any]:
    found: list[Any] = []
    for entry in entries:
        if isinstance(entry, Mapping):
            inner = {
                name: _filled([value] if isinstance(value, str) else value, pages, named)
                for name, value in entry.items()
            }
            found += [{name: value} for name, value in inner.items() if value]
        elif entry.endswith("*"):
            folder = entry.rpartition("/")[0]
            inside = [page for page in pages if page.rpartition("/")[0] == folder and page not in named]
            found += sorted(inside, key=lambda page: (not page.endswith("/index.md"), page))
        elif entry in pages:
            found.append(entry)
    return found


def site_config(root: Path = ROOT) -> dict[str, Any]:
    """Return the settings of the generator, navigation included, as mkdocs.yml has them."""
    config: dict[str, Any] = yaml.safe_load((root / "mkdocs.yml").read_text(encoding="utf-8"))
    return config


def stage(folder: Path, generated: Mapping[str, str], root: Path = ROOT) -> Path:
    """Write all pages, pictures and settings into a folder for the generator, and return the file of settings."""
    shutil.rmtree(folder, ignore_errors=True)
    pages = with_key_links({**site_pages(root), **generated})
    for name, text in pages.items():
        file = folder / "pages" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    for file in (root / "docs").rglob("*"):
        if file.suffix in (".png", ".svg", ".css"):
            copy = folder / "pages" / file.relative_to(root / "docs")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
    config = site_config(root)
    config |= {"docs_dir": "pages", "site_dir": "site", "nav": filled(config["nav"], pages)}
    python = config["plugins"][-1]["mkdocstrings"]["handlers"]["python"]
    python["paths"] = [str(root)]
    python["options"]["extensions"] = [str(Path(__file__).with_name("docstring_forms.py"))]
    (folder / "mkdocs.yml").write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return folder / "mkdocs.yml"
