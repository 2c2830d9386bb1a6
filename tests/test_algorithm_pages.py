"""Every algorithm has a page in docs/algorithms, of the same structure, whose command, defaults and links are valid."""

from __future__ import annotations

import ast
import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from rlhf_lightning.commands import train
from rlhf_lightning.commands.composition import compose_config
from rlhf_lightning.functional.preference import LOSS_TYPES
from rlhf_lightning.rewards import check_scores
from rlhf_lightning.source.declarations import declaration

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs" / "algorithms").glob("*.md"))
HEADINGS = ["Command", "Equation", "Pseudo-code", "Deviations", "Defaults", "Logged", "Measured"]
SOURCE = "https://github.com/rlhf-lightning/rlhf-lightning/blob/main/"


def sections(page: Path) -> dict[str, str]:
    """Return the text under each second-level heading, in order."""
    _, *parts = re.split(r"^## ", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {head: text for head, _, text in (part.partition("\n") for part in parts)}


def commands(page: Path) -> list[list[str]]:
    """Return the overrides of each command under "Command"."""
    (block,) = re.findall(r"```bash\n(.*?)```", sections(page)["Command"], re.DOTALL)
    lines = [shlex.split(line) for line in block.splitlines()]
    assert all(line[0] == "rlhf-train" for line in lines)
    return [line[1:] for line in lines]


@cache
def composed(page: Path) -> dict[str, Any]:
    """Return the config of the page's first command."""
    return compose_config("train", commands(page)[0])


def value_of(config: dict[str, Any], key: str) -> Any:
    """Return the value of a dotted key."""
    found: Any = config
    for name in key.split("."):
        found = found[name]
    return found


def defined_in(file: Path) -> set[str]:
    """Return the functions, methods and classes of a source file."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    return {node.name for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, kinds)}


def source_links(page: Path) -> list[tuple[str, str]]:
    """Return a page's links to the source: the name that each gives, and the file."""
    text = page.read_text(encoding="utf-8")
    files = dict(re.findall(rf"^\[(\w+)\]: {SOURCE}(\S+)$", text, re.MULTILINE))
    return [(name, files[key]) for name, key in re.findall(r"\[`([\w.]+)`\]\[(\w+)\]", text)]


def test_every_algorithm_has_a_page() -> None:
    algorithms = {file.stem for file in (ROOT / "conf" / "algorithm").glob("*.yaml")}
    assert algorithms <= {page.stem for page in PAGES}


def test_every_loss_of_pairs_is_on_a_page() -> None:
    pages = [ROOT / "docs" / "algorithms" / f"{name}.md" for name in ("dpo", "ipo", "dpo_losses")]
    text = "".join(page.read_text(encoding="utf-8") for page in pages)
    missing = [name for name in LOSS_TYPES if not re.search(rf"`(algorithm\.loss_type=)?{name}`", text)]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_pages_have_one_structure(page: Path) -> None:
    assert list(sections(page)) == HEADINGS
    measured = sections(page)["Measured"]
    assert "Not measured:" in measured


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_of_a_page_are_accepted(page: Path) -> None:
    train.check(composed(page))
    for overrides in commands(page)[1:]:
        train.check(compose_config("train", overrides))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_defaults_of_a_page_are_those_of_its_command(page: Path) -> None:
    rows = re.findall(r"^\| `([\w.]+)` \| (\S+) \|", sections(page)["Defaults"], re.MULTILINE)
    assert rows
    for key, said in rows:
        found = value_of(composed(page), key)
        assert str(yaml.safe_load(said)) == str(found) or float(said) == float(found), key


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_says_is_logged_is_declared(page: Path) -> None:
    names = set(re.findall(r"`([a-z]+(?:/[a-z_]+)+)`", sections(page)["Logged"]))
    assert names
    assert names <= declaration(composed(page)).logs


@pytest.mark.parametrize("page", [*PAGES, ROOT / "docs" / "how_it_works.md"], ids=lambda page: page.stem)
def test_the_functions_that_a_page_links_to_are_where_it_says(page: Path) -> None:
    links = source_links(page)
    assert links
    for name, file in links:
        assert set(name.split(".")) <= defined_in(ROOT / file), f"{name} in {file}"


def test_pages_have_the_figures_of_the_results() -> None:
    results = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    choice = (ROOT / "docs" / "which_algorithm.md").read_text(encoding="utf-8")
    columns = r"^\| (\w+) \| (-?[\d.]+) \| ([\d.]+% \(\d+%-\d+%\)) \|[^|]*%[^|]*\| ([\d.]+) \|"
    rows = re.findall(columns, results, re.MULTILINE)
    assert len(rows) == 18
    for name, gold, wins, kl in rows:
        page = (ROOT / "docs" / "algorithms" / f"{name}.md").read_text(encoding="utf-8")
        assert f"gold score {gold}, wins against SFT {wins}" in page, name
        assert f"KL {kl} nats per response" in page, name
        assert f"| {gold} | {wins} | {kl} |" in choice, name


def keys_of(config: dict[str, Any], prefix: str = "") -> set[str]:
    """Return every dotted key of a config."""
    deeper = [keys_of(value, f"{prefix}{name}.") for name, value in config.items() if isinstance(value, dict)]
    return {f"{prefix}{name}" for name in config}.union(*deeper)


def named_keys(page: str) -> set[str]:
    """Return the keys that a guide names as ours; in a table of several libraries, those of the column `here`."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    if page == "coming_from.md":
        rows = [
            row
            for table in re.findall(r"^\| here \|.*\n((?:\|.*\n)+)", text, re.MULTILINE)
            for row in table.splitlines()
        ]
        text = "\n".join(row.split("|")[1] for row in rows)
    return set(re.findall(r"`((?:algorithm|callbacks|data|model|reward|rollout|scheduler|trainer)\.[a-z_.]+)", text))


def test_the_keys_that_guides_name_exist() -> None:
    sampled = [
        "experiment=grpo",
        "callbacks=overoptimization",
        "model/adapter=lora",
        "scheduler=cosine",
        "rollout=vllm",
    ]
    pages = (page for page in PAGES if page.stem in ("ppo", "reward", "dpo", "kto", "simpo", "cpo"))
    known = keys_of(compose_config("train", sampled)).union(*(keys_of(composed(page)) for page in pages))
    for page in ("coming_from.md", "troubleshooting.md", "how_it_works.md"):
        assert named_keys(page), page
        assert named_keys(page) <= known, page


def test_the_metrics_of_troubleshooting_are_defined() -> None:
    text, metrics = (
        (ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("troubleshooting.md", "metrics.md")
    )
    named = set(re.findall(r"`((?:kl|objective|perf|policy|rewards|rollout|time|train|val)/[a-z_0-9/]+)`", text))
    assert len(named) > 20
    assert not [name for name in named if f"`{name}`" not in metrics]


def test_the_wrappers_of_other_libraries_rewards_are_rewards() -> None:
    text = (ROOT / "docs" / "coming_from.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {
        "trl_reward": lambda prompts, completions, **columns: [float(len(each)) for each in completions],
        "reward_func": lambda queries, prompts, labels: {"rewards": torch.tensor([float(q[-1]) for q in queries])},
        "compute_score": lambda source, solution, truth: float(solution == truth),
    }
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, names)
    asked, said = ["1 + 1 = ", "2 + 2 = "], ["2", "5"]
    columns = {
        "answer": ["2", "4"],
        "data_source": ["sums", "sums"],
        "reward_model": [{"ground_truth": "2"}, {"ground_truth": "4"}],
        "ended": [True, True],
    }
    expected = {"my_fn": [1, 0], "from_trl": [1, 1], "from_openrlhf": [2, 5], "from_verl": [1, 0]}
    for name, scores in expected.items():
        assert check_scores(names[name](asked, said, **columns), len(said), name) == scores


@pytest.mark.parametrize("group", ["experiment", "pipeline"])
def test_every_recipe_is_listed(group: str) -> None:
    text = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    missing = [file.stem for file in (ROOT / "conf" / group).glob("*.yaml") if f"`{group}={file.stem}`" not in text]
    assert not missing
