"""A separate environment for each version of TRL, next to the project's, with the versions of its lock."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets")


def peer_python(trl: str) -> Path:
    """Return the interpreter of `.venv-trl-<version>`, which is created if it does not exist.

    torch, transformers and peft are those of requirements.lock, so that both sides run on the same libraries. Wheels
    are also looked up where UV_FIND_LINKS or PIP_FIND_LINKS points.
    """
    folder = ROOT / f".venv-trl-{trl}"
    python, ready = folder / "bin" / "python", folder / ".ready"
    if not ready.exists():
        print(f"making {folder.name}", file=sys.stderr, flush=True)
        uv = Path(sys.executable).parent / "uv"
        links = os.environ.get("UV_FIND_LINKS") or os.environ.get("PIP_FIND_LINKS") or ""
        environment = {**os.environ, "UV_FIND_LINKS": links}
        lock = ROOT / "requirements.lock"
        for command in (
            [uv, "venv", "--quiet", "--clear", "--python", sys.executable, folder],
            [uv, "pip", "install", "--quiet", "--python", python, "--constraint", lock, f"trl=={trl}", *PACKAGES],
        ):
            subprocess.run([str(part) for part in command], check=True, env=environment)
        ready.touch()
    return python
