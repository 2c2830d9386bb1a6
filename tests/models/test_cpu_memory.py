"""Freed memory stays with the process, unless the user has said how the C library is to keep it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import tiny_model

PROGRAM = """
import resource, sys
import torch
from rlhf_lightning.models import load_causal_lm
load_causal_lm(sys.argv[1])
for step in range(12):
    if step == 2:
        begun = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    small = [torch.ones(2**18) for _ in range(20)]  # 1 MiB each
    del small
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - begun)
"""


def faults(model: Path, **environment: str) -> int:
    """Pages that ten steps of 20 MiB get from the system."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", PROGRAM, str(model)]
    return int(subprocess.run(command, env={**variables, **environment}, capture_output=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_a_step_takes_what_the_one_before_has_freed(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    pages = 10 * 20 * 2**20 // os.sysconf("SC_PAGE_SIZE")
    assert faults(tmp_path) < 0.05 * pages
    assert faults(tmp_path, MALLOC_MMAP_THRESHOLD_="65536") > 0.9 * pages
