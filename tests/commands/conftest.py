from __future__ import annotations

import pytest


@pytest.fixture
def empty_folder(tmp_path, monkeypatch):
    """Use a separate working folder: paths in the configs are relative to where a command is called."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
