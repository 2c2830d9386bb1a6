"""A kill at any point of a save leaves a checkpoint that its manifest knows."""

from __future__ import annotations

import hashlib
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest

from rlhf_lightning import durable
from rlhf_lightning.durable import (
    append_durably,
    manifest_of,
    read_manifest,
    remove_tree,
    remove_with_manifest,
    save_with_manifest,
    what_is_broken,
    write_text_durably,
)
from rlhf_lightning.errors import DiskError


class Killed(BaseException):
    """Represents SIGKILL: nothing of ours catches it, and nothing is cleaned up."""


def save(path: Path, content: bytes) -> None:
    def write(file: Any) -> None:
        for i in range(0, len(content), 2):
            file.write(content[i : i + 2])

    save_with_manifest(path, write, epoch=1, global_step=len(content))


class Interrupting:
    """Counts the writes, syncs and renames; raises before the `at`-th one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls, self.at = 0, -1
        for owner, name in ((durable.os, "fsync"), (durable.os, "replace"), (durable.HashingFile, "write")):
            monkeypatch.setattr(owner, name, self._wrap(getattr(owner, name)))

    def _wrap(self, call: Any) -> Any:
        def wrapped(*arguments: Any) -> Any:
            if self.calls == self.at:
                raise Killed
            self.calls += 1
            return call(*arguments)

        return wrapped


def test_a_kill_at_any_point_leaves_the_former_or_the_new_checkpoint_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupting = Interrupting(monkeypatch)
    save(tmp_path / "count.ckpt", b"former")
    points, found = interrupting.calls, []
    assert points >= 8
    for at in range(points):
        path = tmp_path / str(at) / "last.ckpt"
        path.parent.mkdir()
        interrupting.at = -1
        save(path, b"former")
        for content in (b"newer!", b"newest"):  # killed twice at the same point
            interrupting.calls, interrupting.at = 0, at
            with pytest.raises(Killed):
                save(path, content)
            assert what_is_broken(path) is None, f"killed before operation {at}"
        found.append(path.read_bytes())
        interrupting.at = -1
        save(path, b"again!")
        assert what_is_broken(path) is None
        assert len(read_manifest(path)) == 1
        assert sorted(p.name for p in path.parent.iterdir()) == ["last.ckpt", "last.ckpt.manifest.json"]
    assert {b"former", b"newest"} <= set(found)


def test_the_manifest_holds_size_hash_and_what_it_is_told(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    save(path, b"12345")
    digest = hashlib.sha256(b"12345").hexdigest()
    assert read_manifest(path) == [{"size": 5, "sha256": digest, "epoch": 1, "global_step": 5}]


def test_a_save_removes_what_a_killed_one_has_left_and_nothing_else(tmp_path: Path) -> None:
    for name in (".epoch=0003.ckpt.tmp", ".mine.tmp", "other.ckpt"):
        (tmp_path / name).write_bytes(b"x")
    save(tmp_path / "last.ckpt", b"x")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {".mine.tmp", "other.ckpt", "last.ckpt", "last.ckpt.manifest.json"}


def test_temporary_files_lie_beside_their_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    renamed = []
    monkeypatch.setattr(durable.os, "replace", lambda a, b: renamed.append((a, b)) or os.rename(a, b))
    save(tmp_path / "last.ckpt", b"x")
    assert len(renamed) == 3
    assert all(Path(a).parent == Path(b).parent == tmp_path for a, b in renamed)


def test_a_checkpoint_without_manifest_is_judged_by_its_zip_directory(tmp_path: Path) -> None:
    path = tmp_path / "other.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data", b"x" * 1000)
    assert what_is_broken(path) is None
    path.write_bytes(path.read_bytes()[:500])
    assert "not a whole zip archive" in str(what_is_broken(path))
    assert what_is_broken(tmp_path / "none.ckpt") == "it does not exist"


def test_removing_a_checkpoint_removes_its_manifest(tmp_path: Path) -> None:
    save(tmp_path / "last.ckpt", b"x")
    remove_with_manifest(tmp_path / "last.ckpt")
    assert list(tmp_path.iterdir()) == []
    assert not manifest_of(tmp_path / "last.ckpt").exists()


def test_a_text_is_replaced_whole(tmp_path: Path) -> None:
    write_text_durably(tmp_path / "a.json", "é1\n")
    write_text_durably(tmp_path / "a.json", "é2\n")
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == "é2\n"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_lines_are_not_added_through_a_link(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "theirs")
    with pytest.raises(DiskError, match="symbolic links"):
        append_durably(tmp_path / "link", "x\n")
    assert not (tmp_path / "theirs").exists()


def test_a_link_is_removed_and_what_it_leads_to_stays(tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "theirs")
    remove_tree(tmp_path / "link")
    assert not (tmp_path / "link").is_symlink()
    assert (tmp_path / "theirs" / "file").exists()
    remove_tree(tmp_path / "theirs")
    assert not (tmp_path / "theirs").exists()
