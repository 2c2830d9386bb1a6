"""A training command restarts without glibc's thread caches, once, with the same arguments."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rlhf_lightning.commands import entry
from rlhf_lightning.process import thread_caches
from rlhf_lightning.process.thread_caches import OFF, restart_without_thread_caches

SCRIPT = """
import json, os, sys
from pathlib import Path
from rlhf_lightning.process import thread_caches
thread_caches.GPUS = ()
sys.stderr.write(f"start {os.getpid()}\\n")
thread_caches.restart_without_thread_caches("rlhf-train")
words = Path("/proc/self/cmdline").read_text().split("\\0")[1:-1]
print(json.dumps([os.environ.get("GLIBC_TUNABLES"), os.getpid(), words, sys.stdin.read()]))
"""
ON_GLIBC = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")


def run(folder: Path, name: str, *options: str, **environment: str) -> tuple[list[str], list[Any]]:
    """Return the starts of a script of this name, and its final output."""
    script = folder / name
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, *options, str(script), "optimizer.lr=1e-5", "-m", ""],
        env={**{name: value for name, value in os.environ.items() if name not in OFF}, **environment},
        **{"input": "in", "capture_output": True, "text": True, "check": True},
    )
    return done.stderr.split("\n")[:-1], json.loads(done.stdout)


@ON_GLIBC
def test_a_command_starts_over_once_in_the_same_process_with_the_same_words_and_input(tmp_path: Path) -> None:
    starts, (setting, process, words, given) = run(tmp_path, "rlhf-train")
    assert starts == [f"start {process}"] * 2
    assert setting == "glibc.malloc.tcache_count=0"
    assert words == [str(tmp_path / "rlhf-train"), "optimizer.lr=1e-5", "-m", ""]
    assert given == "in"


@ON_GLIBC
@pytest.mark.parametrize(
    ("name", "options", "environment"),
    [
        ("another", (), {}),
        ("rlhf-train", ("-u",), {}),
        ("rlhf-train", (), {"GLIBC_TUNABLES": "glibc.malloc.arena_max=1"}),
    ],
)
def test_nothing_happens_to_others_and_to_a_setting_of_the_users(
    tmp_path: Path, name: str, options: tuple[str, ...], environment: dict[str, str]
) -> None:
    starts, (setting, *_) = run(tmp_path, name, *options, **environment)
    assert len(starts) == 1
    assert setting == environment.get("GLIBC_TUNABLES")


@pytest.mark.parametrize(("gpu", "library", "restarts"), [(False, "glibc", 1), (True, "glibc", 0), (False, "", 0)])
def test_not_with_a_gpu_or_another_c_library(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gpu: bool, library: str, restarts: int
) -> None:
    calls: list[Any] = []
    device = tmp_path / "device"
    if gpu:
        device.touch()
    for name in OFF:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(thread_caches, "GPUS", (device,))
    monkeypatch.setattr(platform, "libc_ver", lambda: (library, "1"))
    monkeypatch.setattr(sys, "orig_argv", ["python", "/somewhere/rlhf-train", "x=1"])
    monkeypatch.setattr(os, "execv", lambda *words: calls.append(words))
    restart_without_thread_caches("rlhf-train")
    assert calls == [(sys.executable, [sys.executable, "/somewhere/rlhf-train", "x=1"])] * restarts


@pytest.mark.parametrize("command", ["train", "pipeline"])
def test_commands_that_train_do_it_before_they_are_imported(monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    class StartedOverError(Exception):
        pass

    def restart(name: str) -> None:
        raise StartedOverError(name)

    monkeypatch.setattr(entry, "restart_without_thread_caches", restart)
    monkeypatch.setattr(entry, "answered", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(entry.importlib, "import_module", lambda name: pytest.fail(f"{name} is imported twice"))
    with pytest.raises(StartedOverError, match=f"^rlhf-{command}$"):
        getattr(entry, command)()


def test_without_torch_nothing_is_collected_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python looks for cycles in everything it has read, several times: a third of the time of a config error."""
    frozen: list[bool] = []
    monkeypatch.setattr(entry.gc, "freeze", lambda: frozen.append(True))
    entry._leave_configs()
    assert frozen == []  # networks and loaders have finalisers
    monkeypatch.delitem(sys.modules, "torch")
    entry._leave_configs()
    assert frozen == [True]
