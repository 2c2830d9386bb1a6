from __future__ import annotations

import sys

import pytest


@pytest.fixture
def empty_folder(tmp_path, monkeypatch):
    """A working folder of its own, whose modules configs may name; those of other tests' folders are not found."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    return tmp_path
