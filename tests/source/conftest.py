from __future__ import annotations

import sys

import pytest


@pytest.fixture
def empty_folder(tmp_path, monkeypatch):
    """Use a separate working folder, whose modules configs may name; those in other tests' folders are not found."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    return tmp_path
