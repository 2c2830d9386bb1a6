"""The documentation site has every page, key, command and public name, and refuses what is broken."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from rlhf_lightning.config.reference import command_settings, groups, option_settings, options
from rlhf_lightning.config.schema import TOP_LEVELS
from rlhf_lightning.source.constructors import signature
from rlhf_lightning.source.definitions import definition
from rlhf_lightning.source.docstrings import documented_arguments

ROOT = Path(__file__).parents[1]
HOST = "[a](https://github.com/rlhf-lightning/rlhf-lightning/blob/main/{})"
MODULES = ("setting_pages", "command_pages", "python_pages", "staging", "mathml", "tables")


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    return SimpleNamespace(**{name: importlib.import_module(f"documentation.{name}") for name in MODULES})


def generated(site: Any) -> dict[str, str]:
    pages = site.setting_pages.setting_pages() | site.command_pages.command_pages(lambda name: f"{name}: does it.")
    return pages | site.python_pages.python_pages()


def test_every_page_is_in_the_navigation_once(site: Any) -> None:
    pages = {**site.staging.site_pages(), **generated(site)}
    listed = [*site.staging.navigation_pages(site.staging.filled(site.staging.site_config()["nav"], pages))]
    assert sorted(listed) == sorted(pages)


def test_a_new_page_is_in_the_navigation(site: Any) -> None:
    entries = ["index.md", {"Start": ["start/b.md", "start/*"]}, {"Empty": ["gone.md"]}, {"More": ["*"]}]
    pages = ["index.md", "start/a.md", "start/b.md", "new.md"]
    assert site.staging.filled(entries, pages) == [
        "index.md",
        {"Start": ["start/b.md", "start/a.md"]},
        {"More": ["new.md"]},
    ]


def test_every_config_key_is_in_the_reference(site: Any) -> None:
    pages = site.setting_pages.setting_pages()
    for group in groups():
        for option in options(group) if group != "algorithm" else ():
            page = pages[f"reference/config/groups/{group.replace('/', '_')}.md"]
            keys = [f"`{group.replace('/', '.')}.{each.key}`" for each in option_settings(group, option)]
            assert option == "none" or not [key for key in keys if key not in page]
    for option in options("algorithm"):
        page = pages[f"reference/config/algorithm/{option}.md"]
        assert not [each.key for each in option_settings("algorithm", option) if f"`algorithm.{each.key}`" not in page]


def test_every_option_and_experiment_is_in_the_reference(site: Any) -> None:
    text = "\n".join(site.setting_pages.setting_pages().values())
    for file in (ROOT / "conf").glob("*/**/*.yaml"):
        group = "/".join(file.relative_to(ROOT / "conf").parts[:-1])
        if group not in TOP_LEVELS or group == "pipeline":  # the others are the configs of commands
            assert f"{group}={file.stem}" in text or group == "hydra/launcher", file


def test_every_command_is_in_the_reference_with_its_keys(site: Any) -> None:
    declared = re.findall(r'^(rlhf[\w-]*) = "', (ROOT / "pyproject.toml").read_text(), re.M)
    pages = site.command_pages.command_pages(lambda name: f"{name}: said by {name}.")
    assert len(declared) > 10
    for name in declared:
        page = pages[f"reference/commands/{name}.md"]
        assert f"said by {name}" in page
        assert f"[`{name}`]" in pages["reference/commands/index.md"]
        command = name.removeprefix("rlhf-")
        keys = command_settings(command) if command in TOP_LEVELS else []
        missing = [each.key for each in keys if f"`{each.key}`" not in page]
        assert set(missing) <= (set(groups()) if command == "train" else set())


def test_the_page_of_a_command_is_what_its_help_prints(site: Any) -> None:
    assert site.command_pages.help_of("rlhf-track").startswith("rlhf-track: ")


def test_every_public_name_is_in_the_reference(site: Any) -> None:
    pages = site.python_pages.python_pages()
    for package in ("functional", "algorithms", "rewards", "rollout", "feedback", "models", "data", "evaluation"):
        page = pages[f"reference/python/{package}.md"]
        for name in importlib.import_module(f"rlhf_lightning.{package}").__all__:
            assert f"\n::: rlhf_lightning.{package}.{name}\n" in page


def test_every_argument_that_a_public_docstring_names_is_one(site: Any) -> None:
    wrong = []
    for package, names in site.python_pages.public_names().items():
        for name in names:
            found = definition(f"rlhf_lightning.{package}.{name}")
            if found is None or isinstance(found.node, ast.Assign | ast.AnnAssign):
                continue
            taken = signature(found.path)
            said = set(documented_arguments(found)) - attributes(found.node)
            wrong += [f"{found.path}: {each}" for each in said - set(taken.parameters) if not taken.takes_more]
    assert not wrong


def test_a_docstring_leaves_inherited_arguments_to_the_base_where_a_class_has_its_own_constructor(site: Any) -> None:
    wrong = []  # the site's reader of docstrings knows only the constructor in front of it
    for package, names in site.python_pages.public_names().items():
        for name in names:
            found = definition(f"rlhf_lightning.{package}.{name}")
            for init in found.node.body if found is not None and isinstance(found.node, ast.ClassDef) else ():
                if isinstance(init, ast.FunctionDef) and init.name == "__init__":
                    taken = {each.arg for each in ast.walk(init.args) if isinstance(each, ast.arg)}
                    said = set(documented_arguments(found)) - attributes(found.node) - taken
                    wrong += [f"{found.path}: {each}" for each in said]
    assert not wrong


def attributes(node: ast.AST) -> set[str]:
    """Return what a class sets on itself: its docstring may describe these as well."""
    inside = [*ast.walk(node)]
    fields = {getattr(each.target, "id", "") for each in inside if isinstance(each, ast.AnnAssign)}
    stored = [each for each in inside if isinstance(each, ast.Attribute) and isinstance(each.ctx, ast.Store)]
    return fields | {each.attr for each in stored}


def test_every_metric_that_an_algorithm_logs_is_on_its_page(site: Any) -> None:
    pages = site.setting_pages.setting_pages()
    assert "`value/explained_variance`" in pages["reference/config/algorithm/ppo.md"]
    assert "`rewards/margins`" in pages["reference/config/algorithm/dpo.md"]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "docs/inside").mkdir(parents=True)
    for name in ("docs/other.md", "docs/picture.png", "CHANGELOG.md", "Makefile"):
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("link", "becomes"),
    [
        ("[a](../other.md#part)", "[a](../other.md#part)"),
        ("[a](#here) [b](https://x.org/y)", "[a](#here) [b](https://x.org/y)"),
        ("![a](../picture.png)", "![a](../picture.png)"),
        ("[a](../../CHANGELOG.md)", "[a](../changelog.md)"),
        ("[a](../../Makefile)", "[a](https://github.com/rlhf-lightning/rlhf-lightning/blob/main/Makefile)"),
        ("[a](../../docs)", "[a](https://github.com/rlhf-lightning/rlhf-lightning/tree/main/docs)"),
        (
            "[a][b]\n\n[b]: https://github.com/rlhf-lightning/rlhf-lightning/blob/main/Makefile",
            "[a][b]\n\n[b]: https://github.com/rlhf-lightning/rlhf-lightning/blob/main/Makefile",
        ),
        ("[b]: ../../CHANGELOG.md\n", "[b]: ../changelog.md\n"),
        ("`[a](gone.md)`", "`[a](gone.md)`"),
        ("```\n[a](gone.md)\n```", "```\n[a](gone.md)\n```"),
    ],
)
def test_links_lead_out_of_docs_to_the_code_host(site: Any, checkout: Path, link: str, becomes: str) -> None:
    assert site.staging.with_site_links(link, checkout / "docs/inside/page.md", checkout) == becomes


@pytest.mark.parametrize("link", ["[a](gone.md)", "![a](gone.png)", "[a](../../../outside.md)", HOST.format("gone.py")])
def test_a_link_that_leads_nowhere_is_refused(site: Any, checkout: Path, link: str) -> None:
    with pytest.raises(site.staging.BrokenLinkError, match=r"docs/inside/page\.md: .* does not exist"):
        site.staging.with_site_links(f"See {link}.", checkout / "docs/inside/page.md", checkout)


def test_a_page_beside_docs_links_into_them(site: Any, checkout: Path) -> None:
    text = site.staging.with_site_links("[a](docs/other.md)", checkout / "CHANGELOG.md", checkout)
    assert text == "[a](other.md)"


def test_a_link_to_a_heading_finds_it() -> None:
    """`make docs` finds this as well; here it needs none of its packages."""
    for file in (ROOT / "docs").rglob("*.md"):
        text = re.sub(r"^```.*?^```|`[^`\n]+`", "", file.read_text(encoding="utf-8"), flags=re.M | re.S)
        for target, anchor in re.findall(r"\]\(([^)\s:#]*)#([^)\s]+)\)", text):
            other = (file.parent / target).resolve() if target else file
            assert anchor in headings(other), f"{file.relative_to(ROOT)}: {target}#{anchor}"


def headings(file: Path) -> set[str]:
    """The anchors of a page's headings, as Python-Markdown and the code host make them."""
    found = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in found}


def test_what_stands_in_a_cell_does_not_end_it(site: Any) -> None:
    assert site.setting_pages.in_a_cell("a | b `c | d` <x> *") == "a &#124; b `c | d` &lt;x&gt; \\*"


def test_a_long_cell_is_marked_as_prose(site: Any) -> None:
    short, long = "<td><code>x</code></td>", f"<td>a <a href='{'x' * 50}'>b</a></td>"
    assert site.tables.with_prose_marked(short + long) == short + long
    cell = f"<td>{'word ' * 10}\n<b>b</b></td>"
    assert site.tables.with_prose_marked(cell) == cell.replace("<td>", '<td class="prose">')


def test_a_link_is_not_named_after_a_file() -> None:
    for file in (ROOT / "docs").rglob("*.md"):
        named = re.findall(r"\[`?([\w./-]+\.md)`?\]\(", file.read_text(encoding="utf-8"))
        assert not named, f"{file.relative_to(ROOT)}: {named}: pages of the site have no such names; say what is there"


def test_the_site_is_built_in_continuous_integration() -> None:
    job = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["docs"]
    assert "make docs" in [step.get("run") for step in job["steps"]]


def build(site: Any, folder: Path, page: str, module: str = "") -> str:
    """Return what the generator says about a site of one page."""
    script = importlib.import_module("build_docs")
    (folder / "docs").mkdir()
    (folder / "CHANGELOG.md").write_text("# Changes\n")
    (folder / "CONTRIBUTING.md").write_text("# Contributing\n")
    (folder / "docs/site.css").touch()
    (folder / "docs/index.md").write_text(page)
    (folder / "mymodule.py").write_text(module)
    (folder / "mkdocs.yml").write_text((ROOT / "mkdocs.yml").read_text())
    said: str = script.build(site.staging.stage(folder / "build", {}, folder))
    return said


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("zensical") is None, reason="make docs installs it")
@pytest.mark.parametrize(
    ("page", "module", "said"),
    [
        ("# Home\n\n## There\n\n[a](#there) $x^2$\n\n::: mymodule.f", '"""Mine."""\ndef f(x: int): "Do it."\n', ""),
        ("# Home\n\n[a](#nowhere)", "", "anchor does not exist"),
        ("# Home\n\n::: mymodule.f", 'def f(x: int):\n    """Do it.\n\n    Args:\n        y: no.\n    """\n', "'y'"),
        ("# Home\n\n::: mymodule.gone", "", "gone"),
        ("# Home\n\n<p>::: mymodule.f</p>", "", "no docstring was filled in: mymodule.f"),
        ("# Home\n\n$\\texttt{a\\_b}$", "", "formulas with TeX that is not drawn: a\\_b"),
        ("# Home\n\n<img src='https://x.org/a.png'>", "", "https://x.org/a.png"),
    ],
)
def test_make_docs_is_strict(site: Any, tmp_path: Path, page: str, module: str, said: str) -> None:
    found = build(site, tmp_path, page, module)
    assert (said in found) if said else not found, found
    if not said:
        assert "<math" in (tmp_path / "build/site/index.html").read_text()
