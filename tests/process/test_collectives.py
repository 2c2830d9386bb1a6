"""A process whose collectives have just ended ends with its own exit code."""

from __future__ import annotations

import atexit
import importlib
import signal
import subprocess
import sys
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from rlhf_lightning.commands import entry
from rlhf_lightning.commands.launching import in_submitit
from rlhf_lightning.process.collectives import let_collectives_end

SCRIPT = """
import atexit, sys
import torch
import torch.distributed as dist
from rlhf_lightning.process.collectives import let_collectives_end
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
sys.setswitchinterval(60)  # gloo's threads wait for the interpreter's lock until this one gives it up
atexit.register(let_collectives_end)
numbers = torch.ones(5_000_000)
for _ in range(16):  # the interpreter ends while these do
    dist.all_reduce(numbers[:], async_op=True)
sys.exit(3)
"""


def test_gloo_may_free_its_tensors_before_the_interpreter_ends() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120)
    assert done.returncode == 3, done.stderr


def test_every_command_waits_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    last_things: list[Any] = []
    monkeypatch.setattr(atexit, "register", last_things.append)
    monkeypatch.setattr(importlib, "import_module", lambda name: SimpleNamespace(main=lambda: None))
    monkeypatch.setattr(entry, "answered", lambda *_, **__: nullcontext())  # its handlers would stay for good
    entry.evaluate()
    assert let_collectives_end in last_things


def test_a_job_of_submitit_waits_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    last_things: list[Any] = []
    monkeypatch.setattr(atexit, "register", last_things.append)
    handler = signal.getsignal(signal.SIGUSR2)
    try:
        with in_submitit():
            pass
    finally:
        signal.signal(signal.SIGUSR2, handler)
    assert let_collectives_end in last_things
