"""The files around the code agree with it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]


def test_the_citation_is_of_this_version() -> None:
    version = re.search(r'^version = "([^"]+)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    assert version is not None
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version[1]


def test_the_workflow_runs_what_continuous_integration_runs() -> None:
    job = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["test"]
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]


def test_the_hooks_before_a_commit_are_those_of_make_lint() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M)
    assert lint is not None
    for hook in hooks:
        program = hook["entry"].split()[0].rpartition("/")[2]
        assert re.search(rf"\b{program}\b", lint[1]), program


def test_the_changelog_begins_with_this_version_and_knows_only_the_usual_headings() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    version = re.search(r'^version = "([^"]+)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    releases = re.findall(r"^## \[([^]]+)\](?: - \d{4}-\d{2}-\d{2})?$", text, re.M)
    assert version is not None
    assert next(release for release in releases if release != "Unreleased") == version[1]
    assert len(releases) == len(re.findall(r"^## ", text, re.M))
    usual = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.*)$", text, re.M)) <= usual
    assert set(re.findall(r"^### (.*)$", text.split("## [0.1.0]")[1], re.M)) == {"Added"}


def test_nothing_large_is_tracked() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    sizes = {name: (ROOT / name).stat().st_size for name in listed.stdout.split("\0") if (ROOT / name).is_file()}
    assert sizes
    assert not {name: size for name, size in sizes.items() if size > 500_000}
