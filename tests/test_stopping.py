"""The first signal stops cleanly, whatever the program is doing; a second Ctrl-C stops immediately."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rlhf_lightning import durable, stopping
from rlhf_lightning.errors import Terminated
from rlhf_lightning.stopping import advising, answered, held, listening

ROOT = Path(__file__).resolve().parents[1]
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
AGAIN = "start it again with the same command"


def send(signum: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), signum)


@pytest.fixture(autouse=True)
def _handlers_are_given_back() -> Iterator[None]:
    former = {signum: signal.getsignal(signum) for signum in CODES}
    hook = sys.unraisablehook
    yield
    assert {signum: signal.getsignal(signum) for signum in CODES} == former
    assert sys.unraisablehook is hook
    assert stopping.told() is None


def stopped(body: Callable[[], object], capsys: Any, **settings: Any) -> tuple[Any, str]:
    """Return the exit code of a command with this body, and its output on stderr."""
    with pytest.raises(SystemExit) as end, answered(**settings):
        body()
    return end.value.code, capsys.readouterr().err


@pytest.mark.parametrize("signum", CODES)
def test_a_signal_is_one_line_and_128_and_its_number(signum: signal.Signals, capsys: Any) -> None:
    assert stopped(lambda: send(signum), capsys) == (CODES[signum], f"stopped by {signum.name}; {AGAIN}\n")


def test_a_keyboard_interrupt_of_the_users_code_is_a_stop(capsys: Any) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    def made_an_exit_by_lightning() -> None:
        try:
            interrupted()
        except KeyboardInterrupt:
            sys.exit(1)

    for body in (interrupted, made_an_exit_by_lightning):
        assert stopped(body, capsys) == (130, f"stopped by SIGINT; {AGAIN}\n")


def test_after_a_signal_every_exception_is_the_stop(capsys: Any) -> None:
    def wrapped_by_a_library() -> None:
        try:
            send()
        except BaseException as error:
            raise RuntimeError("unexpected position in the file") from error

    assert stopped(wrapped_by_a_library, capsys) == (143, f"stopped by SIGTERM; {AGAIN}\n")


def test_without_a_signal_other_exceptions_and_exits_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="a bug"), answered():
        raise RuntimeError("a bug")
    with pytest.raises(SystemExit) as end, answered():
        sys.exit(2)
    assert end.value.code == 2


def test_what_is_held_ends_first_and_once(capsys: Any) -> None:
    done: list[str] = []

    def body() -> None:
        with held():
            with held():
                send()
                done.append("inner")
            done.append("outer")
        done.append("after")

    assert stopped(body, capsys)[0] == 143
    assert done == ["inner", "outer"]


def test_further_signals_do_not_cut_the_end_short(capsys: Any) -> None:
    done: list[str] = []

    def body() -> None:
        try:
            send()
        finally:
            for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGTERM):
                send(signum)
            done.append("saved")

    assert stopped(body, capsys) == (143, f"stopped by SIGTERM; {AGAIN}\n")
    assert done == ["saved"]


def test_a_stop_that_python_drops_in_a_finaliser_is_raised_again(capsys: Any) -> None:
    class Thing:
        pass

    def body() -> None:
        thing = Thing()
        reference = weakref.ref(thing, lambda _: send())
        del thing
        assert reference() is None
        time.sleep(5)
        done.append("went on")

    done: list[str] = []
    assert stopped(body, capsys) == (143, f"stopped by SIGTERM; {AGAIN}\n")
    assert not done


def test_a_stop_that_a_library_catches_is_raised_again(capsys: Any) -> None:
    def body() -> None:
        with contextlib.suppress(BaseException):
            send()
        time.sleep(5)
        done.append("went on")

    done: list[str] = []
    assert stopped(body, capsys) == (143, f"stopped by SIGTERM; {AGAIN}\n")
    assert not done


def test_a_stop_is_not_raised_again_while_files_are_tidied_up(capsys: Any) -> None:
    done: list[str] = []

    def body() -> None:
        try:
            try:
                send()
            except BaseException as error:
                raise RuntimeError("wrapped") from error
        finally:
            time.sleep(0.2)
            done.append("tidy")

    assert stopped(body, capsys)[0] == 143
    assert done == ["tidy"]


def test_the_innermost_advice_is_given_spaces_included(capsys: Any) -> None:
    def body() -> None:
        with advising(lambda: "outer"), advising(lambda: "run_dir='a  b\x1b[2J'"):
            send()

    assert stopped(body, capsys)[1] == "stopped by SIGTERM; run_dir='a  b\\x1b[2J'\n"


def test_advice_of_a_block_that_failed_before_is_not_given(capsys: Any) -> None:
    def body() -> None:
        try:
            with advising(lambda: "of the first"):
                raise ValueError("wrong")
        except ValueError:
            send()

    assert stopped(body, capsys)[1] == f"stopped by SIGTERM; {AGAIN}\n"


def test_a_file_that_is_written_durably_is_written_whole(tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "last.ckpt"

    def write(target: Any) -> None:
        target.write(b"one")
        send()
        target.write(b"two")

    assert stopped(lambda: durable.save_with_manifest(file, write), capsys)[0] == 143
    assert file.read_bytes() == b"onetwo"
    assert durable.what_is_broken(file) is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "last.ckpt.manifest.json"]


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "former").touch()
    replace = os.replace

    def interrupted(*names: Any) -> None:
        replace(*names)
        send()

    def body() -> None:
        with durable.replacing_folder(target) as folder:
            (folder / "new").touch()
            monkeypatch.setattr(durable.os, "replace", interrupted)

    assert stopped(body, capsys)[0] == 143
    assert [path.name for path in target.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_ignored_signal_stays_ignored() -> None:
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with answered():
            send(signal.SIGHUP)
            assert stopping.told() is None
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, former)


def test_a_process_that_follows_only_notes_signals() -> None:
    with answered(follows=True), held():
        send(signal.SIGINT)
        assert stopping.told() == signal.SIGINT
        stopping.check()


def test_the_part_that_was_stopped_may_be_forgotten() -> None:
    with answered():
        with pytest.raises(Terminated):
            send(signal.SIGINT)
        stopping.forget()
        stopping.check()


def test_a_fork_leaves_the_terminals_signals_to_the_first_process() -> None:
    with listening():
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
        assert stopping.told() is None


def test_processes_that_were_started_before_are_left_alone() -> None:
    sleep = [sys.executable, "-c", "import time; time.sleep(120)"]
    with subprocess.Popen(sleep) as before:
        with listening(), subprocess.Popen(sleep) as since:
            stopping.end_processes(1.0)
            assert since.wait(5) == -signal.SIGTERM
        assert before.poll() is None
        before.kill()


# ---- separate processes


COMMAND = """
import os, signal, subprocess, sys, time
from rlhf_lightning import stopping
from rlhf_lightning.stopping import answered, held
stopping.REPEAT = 1.0  # on a busy machine two signals in a row may be seen half a second apart
with answered(for_good=True):
    deaf = "import signal, time; signal.signal(signal.SIGINT, lambda *_: 0); print(flush=True); time.sleep(120)"
    child = subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE)
    child.stdout.readline()  # from here on it is deaf
    print(child.pid, flush=True)
    {body}
"""
HELD = "with held(): [print('.', flush=True) or time.sleep(0.05) for _ in range(600)]"
IN_A_LIBRARY = (
    "import ctypes; c, lock = ctypes.CDLL(None), (ctypes.c_char * 64)(); [c.pthread_mutex_lock(lock) for _ in (1, 2)]"
)


def start(body: str) -> tuple[subprocess.Popen[str], int]:
    command = [sys.executable, "-c", COMMAND.format(body=body)]
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    run = subprocess.Popen(command, start_new_session=True, **streams)
    assert run.stdout is not None
    return run, int(run.stdout.readline())


def wait_until_it_sleeps(run: subprocess.Popen[str]) -> None:
    """Wait until the main thread waits for something: here the lock, or the next of the dots."""
    state, limit = "", time.monotonic() + 30
    while state != "S" and time.monotonic() < limit:
        time.sleep(0.2)
        state = Path(f"/proc/{run.pid}/task/{run.pid}/stat").read_text().rpartition(")")[2].split()[0]


def is_gone(pid: int) -> bool:
    """Return whether a process ends soon: after SIGKILL it takes a moment, longer on a busy machine."""
    limit = time.monotonic() + 30
    while stopping._runs(pid) and time.monotonic() < limit:
        time.sleep(0.01)
    return not stopping._runs(pid)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="there is no /proc")
@pytest.mark.parametrize("body", [HELD, IN_A_LIBRARY], ids=["held", "in a library"])
def test_a_second_interrupt_ends_all_at_once(body: str) -> None:
    run, child = start(body)
    wait_until_it_sleeps(run)
    os.killpg(run.pid, signal.SIGINT)
    time.sleep(0.05)
    os.killpg(run.pid, signal.SIGINT)  # the same signal once more, as `make` passes it on
    time.sleep(1.5)
    assert run.poll() is None
    os.killpg(run.pid, signal.SIGINT)
    assert run.wait(30) == 130
    assert run.stderr is not None
    assert run.stderr.read() == "stopped at once\n"
    assert is_gone(child)


def test_a_signal_after_the_end_changes_nothing() -> None:
    body = "import atexit; atexit.register(lambda: (print('ended', flush=True), time.sleep(20)))"
    run, _ = start(body)
    assert run.stdout is not None and run.stderr is not None
    assert run.stdout.readline() == "ended\n"
    run.send_signal(signal.SIGTERM)
    assert run.wait(30) == 0
    os.killpg(run.pid, signal.SIGKILL)
    assert run.stderr.read() == ""


def test_signals_wait_while_a_process_starts_over() -> None:
    first = "import os, signal, sys; from rlhf_lightning import stopping\nwith stopping.kept_back():"
    second = "from rlhf_lightning.stopping import answered\nwith answered(): print('not reached')"
    code = f"{first} os.kill(os.getpid(), signal.SIGINT); os.execv(sys.executable, [sys.executable, '-c', {second!r}])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", f"stopped by SIGINT; {AGAIN}\n")


def test_signals_come_where_a_process_could_not_start_over() -> None:
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with pytest.raises(OSError, match="no such program"), stopping.kept_back():
        raise OSError("no such program")
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask


@pytest.mark.parametrize(
    "command", ["train", "pipeline", "evaluate", "export", "track", "plan", "chat", "agreement", "judge"]
)
def test_signals_are_answered_before_a_command_is_imported(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from rlhf_lightning.commands import entry

    def imported(name: str) -> None:
        assert name == f"rlhf_lightning.commands.{command}"
        send(signal.SIGINT)

    monkeypatch.setattr(entry.importlib, "import_module", imported)
    monkeypatch.setattr(entry, "answered", lambda *settings, for_good: answered(*settings))
    with pytest.raises(SystemExit) as end:
        getattr(entry, command)()
    assert end.value.code == 130
    assert capsys.readouterr().err == f"stopped by SIGINT; {AGAIN}\n"
