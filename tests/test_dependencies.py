"""The floors of pyproject.toml, the lock and the licences agree with docs/dependencies.md."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Floors that exclude versions with public security advisories; docs/dependencies.md says which.
CLOSED = {"torch": "2.10", "transformers": "5.3", "lightning": "2.6.6"}


@pytest.fixture(scope="module")
def licences() -> ModuleType:
    spec = importlib.util.spec_from_file_location("licences", ROOT / "scripts" / "licences.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def requirements() -> list[Requirement]:
    return [Requirement(text) for text in (*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"])]


def test_every_dependency_is_locked_at_a_version_that_its_range_takes(licences):
    versions: dict[str, list[str]] = {}
    for name, version in re.findall(r"(?m)^([\w.-]+)==([\w.+!-]+)", licences.LOCK.read_text()):
        versions.setdefault(name, []).append(version)
    for requirement in requirements():
        assert versions.get(requirement.name), f"{requirement.name} is not in requirements.lock: make lock"
        for version in versions[requirement.name]:
            assert version in requirement.specifier, (
                f"{requirement} and requirements.lock ({version}) differ: make lock"
            )


@pytest.mark.parametrize(("name", "version"), CLOSED.items())
def test_no_version_below_a_closed_hole_is_taken(name, version):
    (requirement,) = [each for each in requirements() if each.name == name]
    assert f">={version}" in str(requirement.specifier)
    assert not requirement.specifier.contains(str(Version(version).major) + ".0.0")
    assert f"`{name}>={version}`" in (ROOT / "docs" / "dependencies.md").read_text()


@pytest.mark.parametrize("name", ["torch", "lightning", "transformers", "peft", "hydra-core", "omegaconf"])
def test_the_next_version_of_what_is_used_by_private_names_is_not_taken(name):
    (requirement,) = [each for each in requirements() if each.name == name]
    (ceiling,) = [part.version for part in requirement.specifier if part.operator == "<"]
    major, minor, *_ = Version(importlib.metadata.version(name)).release
    assert Version(ceiling) == Version(f"{major}.{minor + 1}"), "raise it with the lock, once `make test` has seen it"
    assert f"`{name}<{ceiling}`" in (ROOT / "docs" / "dependencies.md").read_text()


def test_every_floor_is_there():
    for requirement in requirements():
        assert any(part.operator == ">=" for part in requirement.specifier), f"{requirement} has no floor"


def test_every_licence_is_one_that_is_allowed(licences):
    said = {name: licences.licence(name) for name in licences.locked()}
    assert sum(licence is not None for licence in said.values()) > 100
    assert not {name: licence for name, licence in said.items() if licence and not licences.is_allowed(licence)}


@pytest.mark.parametrize(
    ("licence", "allowed"),
    [("MIT", True), ("MPL-2.0 AND MIT", True), ("GPL-3.0-only", False), ("AGPLv3", False), ("not said", False)],
)
def test_what_is_allowed(licence, allowed, licences):
    assert licences.is_allowed(licence) is allowed
