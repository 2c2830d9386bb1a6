"""Whatever the files' times, the checkpoint saved last is the newest, and belongs to its own run."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_lightning import run_identity
from rlhf_lightning.callbacks import DurableCheckpointIO
from rlhf_lightning.durable import entry_of, manifest_of, read_manifest, save_with_manifest
from rlhf_lightning.run_identity import (
    STARTED,
    SaveCounter,
    begin,
    go_on,
    identity_of,
    is_of_earlier_run,
    is_saved_since,
    latest,
    newness,
    read_started,
)

YEAR = 365 * 24 * 3600 * 10**9


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Return a function that moves the clock forward or back, in nanoseconds."""
    real = time.time_ns

    def set_by(nanoseconds: int) -> None:
        monkeypatch.setattr(run_identity.time, "time_ns", lambda: real() + nanoseconds)

    return set_by


def save(folder: Path, name: str) -> Path:
    path = folder / name
    DurableCheckpointIO().save_checkpoint({"epoch": 1, "state_dict": {"w": torch.zeros(2)}}, path)
    return path


def newest(folder: Path) -> str:
    return max(folder.glob("*.ckpt"), key=newness).name


def order_by_name(folder: Path) -> None:
    """Set file times in the reverse of the saving order."""
    for age, path in enumerate(sorted(folder.iterdir())):
        os.utime(path, (1e9 - age, 1e9 - age))


def of_one_second(folder: Path) -> None:
    for path in folder.iterdir():
        os.utime(path, (1e9, 1e9))


def started_is_newest(folder: Path) -> None:
    os.utime(folder / STARTED, (4e9, 4e9))


@pytest.mark.parametrize("touch", [order_by_name, of_one_second, started_is_newest])
def test_the_times_of_files_do_not_matter(touch: Callable[[Path], None], tmp_path: Path) -> None:
    begin(tmp_path)
    saved = [save(tmp_path, name) for name in ("a.ckpt", "b.ckpt", "c.ckpt")]
    touch(tmp_path)
    assert newest(tmp_path) == "c.ckpt"
    assert not any(is_of_earlier_run(path, tmp_path) for path in saved)
    assert all(is_saved_since(path, tmp_path) for path in saved)
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in sorted(tmp_path.glob("*.ckpt*"), reverse=True):
        shutil.copyfile(path, copy / path.name)  # other times, and without .started
    assert newest(copy) == "c.ckpt"
    assert not is_of_earlier_run(copy / "c.ckpt", copy)


@pytest.mark.parametrize("shift", [-YEAR, YEAR])
def test_a_clock_that_is_set_in_the_middle_of_a_run_does_not_change_the_order(
    shift: int, tmp_path: Path, clock: Callable[[int], None]
) -> None:
    begin(tmp_path)
    for name, now in (("a.ckpt", 0), ("b.ckpt", shift), ("c.ckpt", 0), ("d.ckpt", -shift)):
        clock(now)
        go_on(tmp_path, save(tmp_path, name))
    saved = [identity_of(path)["saved"] for path in sorted(tmp_path.glob("*.ckpt"))]
    assert saved == sorted(set(saved))
    assert newest(tmp_path) == "d.ckpt"


def test_a_second_run_in_a_folder_is_another_one_however_the_clock_is_set(
    tmp_path: Path, clock: Callable[[int], None]
) -> None:
    begin(tmp_path)
    first = save(tmp_path, "a.ckpt")
    clock(-YEAR)
    begin(tmp_path)
    second = save(tmp_path, "b.ckpt")
    os.utime(first, (4e9, 4e9))
    assert is_of_earlier_run(first, tmp_path)
    assert not is_of_earlier_run(second, tmp_path)
    assert newest(tmp_path) == "b.ckpt"


def test_a_run_that_is_taken_up_by_name_has_the_folder_from_then_on(tmp_path: Path) -> None:
    begin(tmp_path)
    first = save(tmp_path, "a.ckpt")
    begin(tmp_path)
    second = save(tmp_path, "b.ckpt")
    go_on(tmp_path, first, job="4711")
    assert not is_of_earlier_run(first, tmp_path)
    assert not is_saved_since(first, tmp_path)
    assert is_of_earlier_run(second, tmp_path)
    assert is_saved_since(save(tmp_path, "c.ckpt"), tmp_path)
    started = read_started(tmp_path)
    assert started is not None
    assert started.job == "4711"


def test_checkpoints_of_an_earlier_version_are_told_apart_by_their_times(tmp_path: Path) -> None:
    def save_as_before(name: str, age: float) -> Path:
        save_with_manifest(tmp_path / name, lambda file: file.write(b"x"), epoch=1)
        os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
        return tmp_path / name

    (tmp_path / STARTED).write_text("4711")
    os.utime(tmp_path / STARTED, (1e9 - 5, 1e9 - 5))
    earlier, own = save_as_before("a.ckpt", 10), save_as_before("b.ckpt", 1)
    assert is_of_earlier_run(earlier, tmp_path)
    assert not is_of_earlier_run(own, tmp_path)
    go_on(tmp_path, own)  # with this version, which writes a different file
    assert is_of_earlier_run(earlier, tmp_path)
    assert not is_of_earlier_run(own, tmp_path)
    new = save(tmp_path, "c.ckpt")
    os.utime(new, (1e9 - 99, 1e9 - 99))
    assert newest(tmp_path) == "c.ckpt"
    assert not is_of_earlier_run(new, tmp_path)
    go_on(tmp_path, new)
    assert is_of_earlier_run(earlier, tmp_path)


def test_a_checkpoint_that_has_lost_its_manifest_says_itself_what_it_is(tmp_path: Path) -> None:
    begin(tmp_path)
    path = save(tmp_path, "a.ckpt")
    by_manifest = identity_of(path)
    manifest_of(path).unlink()
    assert identity_of(path) == {key: by_manifest[key] for key in ("run_id", "saved")}
    assert torch.load(path)["run_id"] == by_manifest["run_id"]


@pytest.mark.parametrize("content", [b"", b"PK\x05\x06" + bytes(18), b"text"])
def test_what_is_not_a_checkpoint_says_nothing(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.ckpt").write_bytes(content)
    assert identity_of(tmp_path / "a.ckpt") == {}


def test_what_cannot_be_read_is_looked_at_first_and_is_named(tmp_path: Path) -> None:
    begin(tmp_path)
    save(tmp_path, "a.ckpt")
    broken = save(tmp_path, "b.ckpt")
    save(tmp_path, "c.ckpt")
    manifest_of(broken).write_text("{")
    assert newest(tmp_path) == "b.ckpt"
    broken.write_bytes(b"")
    manifest_of(broken).unlink()
    assert newest(tmp_path) == "b.ckpt"


def test_a_kill_between_manifest_and_checkpoint_does_not_make_the_former_file_newer(tmp_path: Path) -> None:
    begin(tmp_path)
    former = save(tmp_path, "last.ckpt")
    entry = entry_of(former)
    save(tmp_path, "epoch.ckpt")
    planned = {**entry, "sha256": "0" * 64, "saved": entry["saved"] + 2 * YEAR}  # of the same size, never renamed
    content = {"file": "last.ckpt", "entries": [planned, entry]}
    manifest_of(former).write_text(json.dumps(content, indent=2) + "\n")
    assert len(read_manifest(former)) == 2
    assert newest(tmp_path) == "epoch.ckpt"


@pytest.mark.parametrize("text", ["", "4711", "{", '{"run_id": 1}', "[]", '{"run_id": "a", "since": "x", "job": ""}'])
def test_a_damaged_note_of_the_run_refuses_no_checkpoint(text: str, tmp_path: Path) -> None:
    begin(tmp_path)
    path = save(tmp_path, "a.ckpt")
    (tmp_path / STARTED).write_text(text)
    assert not is_of_earlier_run(path, tmp_path)


def test_a_run_that_follows_others_saves_later_numbers(tmp_path: Path, clock: Callable[[int], None]) -> None:
    begin(tmp_path / "a")
    clock(YEAR)
    save(tmp_path / "a", "x.ckpt")
    clock(0)
    begin(tmp_path / "b", others=[tmp_path / "a"])
    save(tmp_path / "b", "x.ckpt")
    assert latest(tmp_path / "b") > latest(tmp_path / "a")


def test_a_counter_reads_a_folder_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Any] = []
    monkeypatch.setattr(run_identity, "latest", lambda folder: read.append(folder) or 0)
    counter = SaveCounter()
    numbers = [counter.next(tmp_path, tmp_path / "b") for _ in range(5)]
    assert numbers == sorted(set(numbers))
    assert len(read) == 2
