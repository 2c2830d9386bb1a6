"""However a full disk is reported, the user reads one line: what, why, how much is free, what to do."""

from __future__ import annotations

import errno
import io
import os
import resource
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_lightning import durable, run_identity
from rlhf_lightning.callbacks import DurableCheckpointIO
from rlhf_lightning.commands import command_line
from rlhf_lightning.commands.train import saying_how_to_go_on
from rlhf_lightning.disk import disk_error, lacks_room
from rlhf_lightning.durable import append_durably, replacing_folder, what_is_broken, write_text_durably
from rlhf_lightning.errors import DiskError, UserError, blaming, writing
from rlhf_lightning.guarded_streams import GuardedStream
from rlhf_lightning.runs.after_training import export_model
from rlhf_lightning.runs.checkpoints import has_checkpoint
from rlhf_lightning.runs.run import Run
from rlhf_lightning.runs.run_folder import begin_run, write_config

WORDS = {  # in the libraries' words
    "safetensors": ("Error while serializing: I/O error: No space left on device (os error 28)", errno.ENOSPC),
    "tokenizers": ("Disk quota exceeded (os error 122)", errno.EDQUOT),
    "pyarrow": ("Error writing bytes to file. Detail: [errno 28] No space left on device", errno.ENOSPC),
    "pyarrow reading": ("Detail: [errno 5] Input/output error", errno.EIO),
    "torch": (
        "[enforce fail at inline_container.cc:778] . PytorchStreamWriter failed writing file data/0",
        errno.ENOSPC,
    ),
    "torch at its end": ("[enforce fail at inline_container.cc:603] . unexpected pos 64 vs 0", errno.ENOSPC),
}


@pytest.fixture
def small_files() -> Iterator[Callable[[int], None]]:
    """Yield a function that sets the largest size of a file, like `ulimit -f`."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, former[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, former)


@pytest.mark.parametrize(("text", "number"), WORDS.values(), ids=list(WORDS))
def test_the_words_of_every_library_are_understood(text: str, number: int) -> None:
    assert disk_error(RuntimeError(text)) == number


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS])
def test_an_error_of_the_disk_is_found_behind_those_that_it_led_to(number: int) -> None:
    def write() -> None:
        try:
            raise OSError(number, os.strerror(number))
        except OSError:
            raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")  # noqa: B904

    with pytest.raises(RuntimeError) as raised:
        write()
    assert disk_error(raised.value) == number


@pytest.mark.parametrize(
    "error",
    [
        OSError("gpt2 is not a local folder"),
        FileNotFoundError(errno.ENOENT, "No such file"),
        RuntimeError("os error 2"),
        ValueError("28"),
        sqlite3.OperationalError("no such table"),
    ],
)
def test_what_the_disk_has_not_said_is_not_blamed_on_it(error: Exception) -> None:
    assert disk_error(error) is None


def test_sqlites_sentence_is_a_full_disk() -> None:
    assert lacks_room(sqlite3.OperationalError("database or disk is full"))


def test_the_line_says_what_could_not_be_written_how_much_is_free_and_what_to_do(tmp_path: Path) -> None:
    with (
        pytest.raises(DiskError, match=r"^.*/a.txt cannot be written: no space left on device, .* are free in /") as it,
        writing(tmp_path / "a.txt"),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert str(it.value).endswith(f"are free in {tmp_path}; make room, and try again")
    with pytest.raises(UserError, match=r"; make room, and go on with x$"), saying_how_to_go_on(lambda: "go on with x"):
        raise it.value


@pytest.mark.parametrize("number", [errno.EACCES, errno.EISDIR])
def test_a_file_that_may_not_be_written_is_named_and_one_that_is_read_meanwhile_is_not(
    number: int, tmp_path: Path
) -> None:
    with pytest.raises(DiskError, match=r"a.txt cannot be written: "), writing(tmp_path / "a.txt"):
        raise OSError(number, os.strerror(number), str(tmp_path / "a.txt"))
    with pytest.raises(OSError, match="elsewhere"), writing(tmp_path / "a.txt"):
        raise OSError(number, os.strerror(number), "/elsewhere/b.txt")


def test_a_full_disk_is_not_blamed_on_the_key_alone() -> None:
    line = r"^data.train: no space left on device, .* are free in .*; make room"
    with pytest.raises(DiskError, match=line), blaming("data.train"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_limit_of_size_leaves_the_former_checkpoint_and_no_temporary_file(
    tmp_path: Path, small_files: Callable[[int], None]
) -> None:
    path, checkpoint = tmp_path / "last.ckpt", {"weights": torch.zeros(50_000)}
    DurableCheckpointIO().save_checkpoint({"weights": torch.ones(10)}, path)
    former = path.read_bytes()
    small_files(100_000)
    with pytest.raises(DiskError, match=r"last.ckpt cannot be written: file too large; a file may have 97.7 KiB here"):
        DurableCheckpointIO().save_checkpoint(checkpoint, path)
    assert path.read_bytes() == former
    assert what_is_broken(path) is None
    assert sorted(file.name for file in tmp_path.iterdir()) == ["last.ckpt", "last.ckpt.manifest.json"]


def test_lines_that_do_not_go_in_whole_leave_the_file_as_it_was(
    tmp_path: Path, small_files: Callable[[int], None]
) -> None:
    path = tmp_path / "metrics.jsonl"
    append_durably(path, "a" * 90 + "\n")
    small_files(100)
    with pytest.raises(DiskError, match=r"metrics.jsonl cannot be written: file too large"):
        append_durably(path, "b" * 90 + "\n")
    assert path.read_text() == "a" * 90 + "\n"
    with pytest.raises(DiskError):
        append_durably(tmp_path / "new.jsonl", "c" * 200)
    assert (tmp_path / "new.jsonl").read_text() == ""


def test_a_config_that_does_not_go_in_leaves_the_former_one_and_its_summary(
    tmp_path: Path, small_files: Callable[[int], None]
) -> None:
    write_config(tmp_path, {"name": "former"})
    write_text_durably(tmp_path / "summary.json", "{}")
    small_files(1000)
    with pytest.raises(DiskError, match=r"config.yaml cannot be written"):
        write_config(tmp_path, {"name": "x" * 2000})
    assert (tmp_path / "config.yaml").read_text() == "name: former\n"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.yaml", "hashes.json", "summary.json"]


@pytest.mark.parametrize("size", [0, 100, 5000])
def test_a_model_that_does_not_go_in_leaves_the_former_one(
    size: int, tmp_path: Path, small_files: Callable[[int], None]
) -> None:
    from safetensors.torch import save_file

    def export(folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text("{}")
        save_file({"w": torch.zeros(5000)}, folder / "model.safetensors")

    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("former")
    small_files(size)
    with pytest.raises(DiskError, match=r"model cannot be written: file too large"):
        export_model(export, tmp_path)
    line = r"model cannot be written: file too large"
    with pytest.raises(DiskError, match=line), replacing_folder(tmp_path / "model") as new:
        export(new / "inside")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert [path.read_text() for path in (tmp_path / "model").iterdir()] == ["former"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS])
def test_at_the_top_of_a_command_the_disk_is_not_a_bug(number: int) -> None:
    message = command_line.as_user_error(OSError(number, os.strerror(number), "/data/x"))
    assert message is not None
    assert message.startswith(f"/data/x cannot be written: {os.strerror(number).lower()}")


def test_without_room_for_the_traceback_a_bug_is_still_three_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(**_: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(command_line.tempfile, "mkstemp", full)
    command_line.report_bug(KeyError("x"))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert lines[2] == "traceback: not written, no space left on device (debug=true prints it)"


def test_where_the_temporary_folder_takes_nothing_the_traceback_goes_to_the_working_folder(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    small_files: Callable[[int], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    make = command_line.tempfile.mkstemp

    def full(**options: Any) -> Any:
        if options["dir"] is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return make(**options)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command_line.tempfile, "mkstemp", full)
    command_line.report_bug(KeyError("x"))
    (written,) = tmp_path.iterdir()
    assert "KeyError: 'x'" in written.read_text()
    assert written.name in capsys.readouterr().err
    written.unlink()
    small_files(10)
    command_line.report_bug(KeyError("x"))
    assert "not written, no space left on device" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_sync_that_fails_leaves_the_former_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text_durably(tmp_path / "a.json", "former")

    def fails(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(durable.os, "fsync", fails)
    with pytest.raises(DiskError, match=r"a.json cannot be written: input/output error; check the disk"):
        write_text_durably(tmp_path / "a.json", "new")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["former"]


class FullFile(io.StringIO):
    """A log file on a disk with room for ten characters."""

    def write(self, text: str) -> int:
        if self.tell() + len(text) > 10:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(text)


def test_a_log_on_a_full_disk_does_not_stop_a_command_and_is_said_at_its_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = []

    def body() -> None:
        print("four")
        print("this is too long")
        done.append(True)

    monkeypatch.setattr(command_line, "quieten", lambda: None)
    monkeypatch.setattr("sys.stdout", FullFile())
    with pytest.raises(SystemExit) as end:
        command_line.run_command(body)
    assert (end.value.code, done) == (2, [True])
    assert capsys.readouterr().err == (
        "error: standard output cannot be written: no space left on device; everything else is done, but what "
        "was printed after that is lost\n"
    )


def test_what_a_stream_refuses_for_another_reason_is_raised() -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    with pytest.raises(BrokenPipeError):
        GuardedStream(Closed()).write("x")


@pytest.mark.parametrize("fails", [begin_run, write_text_durably])
def test_a_run_that_cannot_take_its_folder_over_leaves_it_to_the_earlier_one(
    fails: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin_run(tmp_path)
    write_config(tmp_path, {"name": "former", "model": {}, "algorithm": {}})
    DurableCheckpointIO(tmp_path).save_checkpoint({}, tmp_path / "checkpoints/last.ckpt")
    write_text_durably(tmp_path / "summary.json", "{}")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if fails is begin_run:
        monkeypatch.setattr(run_identity, "write_text_durably", full)
    else:
        monkeypatch.setattr(durable.os, "fsync", full)
    run = Run({"name": "second", "model": {}, "algorithm": {}, "run_dir": str(tmp_path)})
    with pytest.raises(DiskError, match=r"cannot be written: no space left on device"), run.in_place():
        run.begin()
    assert not run.begun
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert has_checkpoint(tmp_path)


@pytest.mark.parametrize(("rank", "lines"), [("1", 0), (None, 3)])
def test_a_process_that_has_lost_the_first_one_adds_nothing_to_what_that_has_said(
    rank: str | None, lines: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def body() -> None:
        raise RuntimeError("[/pytorch/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:28907")

    monkeypatch.setattr(command_line, "quieten", lambda: None)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    with pytest.raises(SystemExit) as end:
        command_line.run_command(body)
    assert end.value.code == 1
    assert len(capsys.readouterr().err.splitlines()) == lines
