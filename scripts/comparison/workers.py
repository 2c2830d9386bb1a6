"""The driver's side of a worker process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from comparison.environments import ROOT, peer_python
from rlhf_lightning.process import thread_caches

SCRIPTS = ROOT / "scripts"
OFFLINE = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TRL_EXPERIMENTAL_SILENCE": "1"}


class Worker:
    """A process that stays alive and answers one request per line.

    Args:
        python: the interpreter.
        module: what it runs, `comparison.ours` or `comparison.peer`.
        threads: number of threads for its matrix products.
        import_path: folders to import from.
        environment: further environment variables.
    """

    def __init__(
        self, python: Path, module: str, threads: int, import_path: list[Path], environment: dict[str, str]
    ) -> None:
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed with the process
        variables = {**os.environ, **OFFLINE, "OMP_NUM_THREADS": str(threads), **environment}
        variables["PYTHONPATH"] = os.pathsep.join(map(str, import_path))
        self.process = subprocess.Popen(
            [str(python), "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=variables,
        )

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """Return the answer to a request; end the program with the worker's own message if it died."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            print(json.dumps({"do": do, **request}), file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self.process.wait()
            self.log.seek(0)
            sys.exit(f"{' '.join(map(str, self.process.args))} failed:\n{self.log.read()[-6000:]}")  # type: ignore[arg-type]
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """Send no more requests: the process ends."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        self.log.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def our_worker(threads: int, environment: dict[str, str] | None = None) -> Worker:
    """Return our worker, in this environment, started like `rlhf-train`."""
    started = {name: os.environ.get(name, value) for name, value in thread_caches.OFF.items()}
    return Worker(Path(sys.executable), "comparison.ours", threads, [SCRIPTS, ROOT], {**started, **(environment or {})})


def peer_worker(trl: str, threads: int, environment: dict[str, str] | None = None) -> Worker:
    """Return a worker with that version of TRL, in its own environment."""
    return Worker(peer_python(trl), "comparison.peer", threads, [SCRIPTS], environment or {})
