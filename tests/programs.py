"""The installed commands and the repository's scripts, as separate processes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def program(name: str) -> str:
    """Return where an installed command is, such as rlhf-train: next to the interpreter."""
    return str(Path(sys.executable).with_name(name))


def run_script(name: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run `scripts/<name>.py` to its end."""
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / f"{name}.py"), *words],
        capture_output=True,
        text=True,
        env={**os.environ, **ENVIRONMENT},
        check=False,
    )


def counted(pattern: str, name: str, *words: str) -> tuple[list[int], subprocess.CompletedProcess[str]]:
    """Run a script, and read the numbers that the groups of `pattern` find in its output."""
    done = run_script(name, *words)
    found = re.search(pattern, done.stdout)
    assert found, done.stdout + done.stderr
    return [int(number) for number in found.groups()], done
