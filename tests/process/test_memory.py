"""Freed memory stays with the process, unless the user has configured the C library."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_lightning.process import memory

PROGRAM = """
import resource
from rlhf_lightning.process import memory
memory.GPUS = ()
memory.settle_memory()
import torch
for step in range(12):
    if step == 2:
        begun = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    small = [torch.ones(2**18) for _ in range(20)]  # 1 MiB each
    del small
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - begun)
"""


def faults(**environment: str) -> int:
    """Return the pages that ten steps of 20 MiB get from the system."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", PROGRAM]
    return int(subprocess.run(command, env={**variables, **environment}, capture_output=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_a_step_takes_what_the_one_before_has_freed() -> None:
    pages = 10 * 20 * 2**20 // os.sysconf("SC_PAGE_SIZE")
    assert faults() < 0.05 * pages
    assert faults(MALLOC_MMAP_THRESHOLD_="65536") > 0.9 * pages


@pytest.mark.parametrize(("gpu", "given", "found"), [(False, None, "128"), (False, "7", "7"), (True, None, None)])
def test_caches_of_products_are_limited_unless_the_user_or_a_gpu_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, gpu: bool, given: str | None, found: str | None
) -> None:
    monkeypatch.setattr(memory, "keep_freed_memory", lambda: None)
    monkeypatch.setattr(memory, "GPUS", (Path("/"),) if gpu else ())
    for name in memory.CACHES:
        monkeypatch.setenv(name, given or "")
        if given is None:
            monkeypatch.delenv(name)
    memory.settle_memory()
    assert {os.environ.get(name) for name in memory.CACHES} == {found}
