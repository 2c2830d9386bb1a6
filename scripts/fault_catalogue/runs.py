"""Small runs for the faults: started in forks of this process, paused where a fault is to fall, and compared."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bad_input_catalogue.fixtures import REWARDS, write_rows
from forked_command import child_of_command, in_a_fork
from kill_resume import end_of

SECONDS = 300.0  # for one run, also on a slow machine
# A callback that waits at the end of a step until the fault has happened: the run writes `reached.3`, we write `go.3`.
CALLBACK = """
import time
from pathlib import Path
from lightning.pytorch import Callback

class Pause(Callback):
    def __init__(self, at, seconds=0.0):
        self.at, self.seconds = at, seconds
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        step = trainer.global_step
        if step in self.at and not Path(f"reached.{step}").exists():
            Path(f"reached.{step}").touch()
            end = time.monotonic() + 300
            while not Path(f"go.{step}").exists() and time.monotonic() < end:
                time.sleep(0.01)
        time.sleep(self.seconds)
"""
COMMON = [
    "model.path=model",
    "trainer.accelerator=cpu",
    "trainer.log_every_n_steps=1",
    "callbacks.instruments=null",
    "callbacks.progress=null",
    "optimizer.lr=1e-2",
    "run_dir=run",
]
FAMILIES = {
    "sft": [
        *("experiment=sft", "data.train=rows.jsonl", "data.batch_size=2", "data.val_fraction=0.25"),
        *("scheduler=constant", "trainer.max_epochs=4", *COMMON),
    ],
    "ppo": [
        *("experiment=ppo", "data.train=prompts.jsonl", "reward.function=mine.score", "rollout.batch_size=4"),
        *("rollout.max_new_tokens=6", "algorithm.num_minibatches=2", "algorithm.ppo_epochs=1"),
        *("trainer.max_epochs=4", *COMMON),
    ],
}


_PAIRS = [
    *("data.train=pairs.jsonl", "data.batch_size=2", "data.val_fraction=0.25", "scheduler=constant"),
    *("trainer.max_epochs=3", *COMMON),
]
ALL_FAMILIES = {
    **FAMILIES,
    "reward": ["experiment=reward", *_PAIRS],
    "dpo": ["experiment=dpo", "algorithm.precompute_reference=true", *_PAIRS],
}


def write_folder(folder: Path) -> None:
    """Write a tiny model, rows, prompts, a reward and the callback that waits."""

    def write() -> None:
        from rlhf_lightning.simulation.tiny_models import build_model, build_tokenizer

        tokenizer = build_tokenizer()
        build_model(tokenizer, hidden_size=16, layers=1).save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")

    folder.mkdir(parents=True, exist_ok=True)
    in_a_fork(write)
    answers = (
        " you can",
        " i am sorry, but i can not help with that.",
    )
    prompts = [{"prompt": text} for text in ("how do i", "what is", "can you", "why")]
    write_rows(folder / "rows.jsonl", [{**row, "completion": text} for row in prompts for text in answers])
    write_rows(folder / "prompts.jsonl", prompts)
    both = dict(zip(("chosen", "rejected"), answers, strict=True))
    write_rows(folder / "pairs.jsonl", [{**row, **both} for row in prompts for _ in range(2)])
    (folder / "mine.py").write_text(REWARDS)
    (folder / "pauses.py").write_text(CALLBACK)


class Running:
    """A command running in a fork of this process.

    Args:
        command: the module of `rlhf_lightning.commands`.
        words: its command line.
        folder: the working folder.
        prepare: called in the fork before the command, with the folder.
    """

    def __init__(
        self, command: str, words: list[str], folder: Path, prepare: Callable[[Path], object] = lambda folder: None
    ) -> None:
        self.folder, self.began = folder, time.monotonic()
        number = sum(1 for _ in folder.glob("err.*"))
        self._out, self._err, given = (folder / f"{name}.{number}" for name in ("out", "err", "in"))
        for file in (self._out, self._err, given):
            file.touch()
        self.pid = child_of_command(command, words, folder, prepare, (given, self._out, self._err))
        self._code: int | None = None

    @property
    def code(self) -> int | None:
        """Return the exit code; None while it runs."""
        if self._code is None:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if done else None
        return self._code

    @property
    def out(self) -> str:
        """Return what it has printed."""
        return self._out.read_text(errors="replace")

    @property
    def err(self) -> list[str]:
        """Return the lines on standard error."""
        return [line for line in self._err.read_text(errors="replace").splitlines() if line.strip()]

    def wait_until(self, condition: Callable[[], object], seconds: float = SECONDS) -> bool:
        """Wait until a condition holds; return False if the command has ended first."""
        end = time.monotonic() + seconds
        while not condition():
            if self.code is not None:
                return bool(condition())
            if time.monotonic() > end:
                self.kill()
                raise TimeoutError(f"{self.folder}: waited {seconds:.0f} s in vain")
            time.sleep(0.01)
        return True

    def pause(self, step: int, meanwhile: Callable[[], object] = lambda: None) -> float:
        """Wait until the run pauses after a step, do something, and let it continue; return the seconds it was held."""
        self.wait_until(lambda: (self.folder / f"reached.{step}").exists())
        began = time.monotonic()
        meanwhile()
        (self.folder / f"go.{step}").touch()
        return time.monotonic() - began

    def wait(self, seconds: float = SECONDS) -> int:
        """Wait for its end; return the exit code."""
        self.wait_until(lambda: self.code is not None, seconds)
        self.seconds = time.monotonic() - self.began
        return int(self.code or 0)

    def kill(self) -> None:
        """Kill it and its children with SIGKILL."""
        if self.code is None:
            os.killpg(self.pid, signal.SIGKILL)
            self._code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def pausing(*steps: int, seconds: float = 0.0) -> list[str]:
    """Return the overrides of a run that waits after these steps, and sleeps after every step."""
    return [
        "+callbacks.pause._target_=pauses.Pause",
        f"+callbacks.pause.at=[{','.join(map(str, steps))}]",
        f"+callbacks.pause.seconds={seconds}",
    ]


@dataclass
class Undisturbed:
    """A run without any fault."""

    end: dict[str, Any]
    seconds: float
    lines: list[str]


_undisturbed: dict[tuple[Path, str, tuple[str, ...]], Undisturbed] = {}


def undisturbed(
    shared: Path, family: str, words: list[str], prepare: Callable[[Path], object] = lambda folder: None
) -> Undisturbed:
    """Return the undisturbed run of a family with these words, made once, in a folder that is prepared first."""
    key = (shared, family, tuple(words))
    if key not in _undisturbed:
        folder = shared / f"undisturbed.{len(_undisturbed)}"
        write_folder(folder)
        prepare(folder)
        run = Running("train", [*ALL_FAMILIES[family], *words], folder)
        if run.wait() != 0:
            raise RuntimeError(f"the undisturbed run of {family} ended with {run.code}: {run.err[-3:]}")
        _undisturbed[key] = Undisturbed(end_of(folder / "run"), run.seconds, run.err)
    return _undisturbed[key]
