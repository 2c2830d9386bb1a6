"""Bits that flip on the disk: each is noticed by whoever reads the file, or nothing that matters was read from it.

Every file of finished runs (SFT, a LoRA adapter on it, a reward model, PPO, DPO) that a later command reads is damaged:
one bit at random places, a byte less or more, zeros, another file in its place. Then a command reads it. A good outcome
is exit code 2 and a line that says what is wrong; or bitwise the undisturbed command's result, either because the
damaged file was skipped or computed again, with a line that says so, or because nothing was read from it.
"""

from __future__ import annotations

import hashlib
import importlib
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from bad_input_catalogue.fixtures import write_rows
from forked_command import run_command
from kill_resume import compared, end_of, rows

from fault_catalogue import Fault, Outcome
from fault_catalogue.runs import COMMON, FAMILIES, SECONDS, write_folder

FLIPS = 20  # places per file
SHORT = ["logger=none", *(word for word in COMMON if not word.startswith(("run_dir", "model.path")))]
SFT = ["experiment=sft", "data.train=rows.jsonl", "data.batch_size=4", "data.val_fraction=0.25", "scheduler=constant"]
PAIRS = ["data.train=pairs.jsonl", "data.batch_size=4", "data.val_fraction=0.25", "scheduler=constant"]
PPO = [
    word for word in FAMILIES["ppo"] if word not in COMMON and not word.startswith(("reward.", "trainer.max_epochs"))
]
LORA = ["model/adapter=lora", "model.adapter.rank=2"]
TRAINING = {  # in the order in which one begins from another
    "sft": [*SFT, *SHORT, "model.path=model"],
    "lora": [*SFT, *SHORT, *LORA, "model.path=sft"],
    "reward": ["experiment=reward", *PAIRS, *SHORT, "model.path=sft"],
    "ppo": [*PPO, *SHORT, "model.path=sft", "reward.model=reward"],
    "dpo": ["experiment=dpo", *PAIRS, *SHORT, "algorithm.precompute_reference=true", "model.path=sft"],
}


@dataclass(frozen=True)
class Reader:
    """A command that reads a run.

    Args:
        command: the module of `rlhf_lightning.commands`.
        words: its command line.
        result: returns what must be equal, given the working folder and standard output.
        typed: standard input.
    """

    command: str
    words: list[str]
    result: Callable[[Path, str], Any]
    typed: bytes = b""


def _trained(name: str) -> Callable[[Path, str], Any]:
    return lambda folder, out: end_of(folder / name)


def _files(folder: Path, out: str) -> Any:
    """Return the hashes of an export, without the marker, which names the run."""
    found = sorted(file for file in (folder / "made").rglob("*") if file.is_file() and not file.name.startswith("."))
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in found}


def _printed(folder: Path, out: str) -> Any:
    return out


def _evaluated(folder: Path, out: str) -> Any:
    return [compared(row) for row in rows(folder / "made/samples.jsonl")], out


def readers(run: str) -> dict[str, Reader]:
    """Return the commands that read a run, by name."""
    resume = Reader("train", [*TRAINING[run], f"run_dir={run}", "ckpt=last", "trainer.max_epochs=3"], _trained(run))
    export = Reader("export", [f"run={run}", "to=made"], _files)
    if run == "reward":
        words = [*PPO, *SHORT, "model.path=model", "reward.model=reward", "trainer.max_epochs=1", "run_dir=made"]
        return {"resume": resume, "export": export, "next": Reader("train", words, _trained("made"))}
    begins = [*SFT, *SHORT, f"model.path={run}"]
    evaluation = [f"policies={{p: {run}}}", "baseline=p", "prompts=prompts.jsonl", "gold.function=mine.score"]
    return {
        "resume": resume,
        "export": export,
        "next": Reader("train", [*begins, "trainer.max_epochs=1", "run_dir=made"], _trained("made")),
        "plan": Reader("plan", begins, _printed),
        "chat": Reader("chat", [f"model={run}", "max_new_tokens=4"], _printed, b"how do i\n"),
        "evaluate": Reader(
            "evaluate", [*evaluation, "run_dir=made", "samples_per_prompt=1", "max_new_tokens=4"], _evaluated
        ),
    }


def damages(content: bytes, draw: random.Random) -> Iterator[tuple[str, bytes]]:
    """Yield damaged versions of a file's content."""
    for _ in range(FLIPS if content else 0):
        bit = draw.randrange(8 * len(content))
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        yield f"bit {bit}", bytes(flipped)
    if content:
        yield "a byte less", content[:-1]
        yield "zeros", bytes(len(content))
    yield "a byte more", content + b"x"


def import_commands() -> None:
    """Import what the readers need into this process, once for all forks."""
    names = ("train", "build", "plan", "planned_run", "chat", "conversation", "evaluate", "export", "model_card")
    for name in [*(f"commands.{each}" for each in names), "algorithms", "callbacks", "evaluation", "rewards", "data"]:
        importlib.import_module(f"rlhf_lightning.{name}")


def write_runs(folder: Path, run: str) -> None:
    """Make a finished run, and those that it begins from, with the command itself."""
    write_folder(folder)
    pairs = [{"prompt": text, "chosen": " you can", "rejected": " no"} for text in ("how do i", "what is", "can you")]
    write_rows(folder / "pairs.jsonl", pairs * 3)
    for name in list(TRAINING)[: list(TRAINING).index(run) + 1]:
        words = TRAINING[name]
        _run("train", [*words, f"run_dir={name}", "trainer.max_epochs=2"], folder)


def _run(command: str, words: list[str], folder: Path, typed: bytes = b"") -> tuple[str, str]:
    code, out, err = run_command(command, words, folder, lambda folder: None, folder, SECONDS, typed)
    if code != 0:
        raise RuntimeError(f"rlhf-{command} {' '.join(words)} ended with {code}: {err[-500:]}")
    return out, err


@dataclass
class Trials:
    """The finished runs, and the result of each damage to their files."""

    runs: Path
    scratch: Path
    counts: Counter[str] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)
    most_lines: int = 0
    _expected: dict[tuple[str, str], tuple[Any, list[str]]] = field(default_factory=dict)

    def try_file(self, run: str, name: str, by: list[str], few: bool) -> None:
        """Damage a file in every way, or in one; the readers take turns."""
        draw = random.Random(f"{run} {name}")
        content = (self.runs / name).read_bytes()
        beside = next(
            (each for each in sorted((self.runs / name).parent.iterdir()) if self._is_other(each, name)), None
        )
        found = list(damages(content, draw))
        found += [(f"{beside.name} in its place", beside.read_bytes())] if beside else []
        for i, (what, changed) in enumerate(found[:1] if few else found):
            if changed != content:
                self._try(run, name, by[i % len(by)], what, changed)

    def _is_other(self, file: Path, name: str) -> bool:
        return file.is_file() and file.name != Path(name).name and not file.name.startswith(".")

    def _try(self, run: str, name: str, reader: str, what: str, changed: bytes) -> None:
        expected, usual = self.expected(run, reader)
        folder = self._copy()
        # An adapter names its base by its full path, so the base is damaged in place.
        file = (self.runs if run == "lora" and name.startswith("sft/") else folder) / name
        whole = file.read_bytes()
        file.write_bytes(changed)
        try:
            code, result, lines = self._read(folder, run, reader)
        finally:
            file.write_bytes(whole)
        new = [line for line in lines if line not in usual]
        self.most_lines = max(self.most_lines, len(new))
        noticed = code == 2 and new and len(new) <= 2 and "Traceback" not in "".join(new)
        if noticed:
            self.counts["refused"] += 1
        elif code == 0 and result == expected:
            self.counts["passed over" if new else "not read"] += 1
        else:
            said = f"exit code {code}: {' / '.join(new[:2])[:300]}" if code else "another result, silently"
            self.bad.append(f"{name}, {what}, {reader}: {said}")

    def expected(self, run: str, reader: str) -> tuple[Any, list[str]]:
        """Return the result and the lines on standard error of an undisturbed reader."""
        if (run, reader) not in self._expected:
            code, result, lines = self._read(self._copy(), run, reader)
            if code != 0:
                raise RuntimeError(f"{reader} of {run} ended with {code}: {lines[-3:]}")
            self._expected[run, reader] = result, lines
        return self._expected[run, reader]

    def _copy(self) -> Path:
        folder = self.scratch / "trial"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.runs, folder)
        return folder

    def _read(self, folder: Path, run: str, name: str) -> tuple[int | None, Any, list[str]]:
        reader = readers(run)[name]
        code, out, err = run_command(
            reader.command, reader.words, folder, lambda folder: None, folder, SECONDS, reader.typed
        )
        result = reader.result(folder, out) if code == 0 else None
        return code, result, [line for line in err.splitlines() if line.strip()]


# Which command reads what. The model's card is meant to be edited; the other files of a run are written and not read.
OF_MODEL = ("next", "export", "chat", "evaluate", "plan")
OF_RUN = {
    "config.yaml": ("resume", "export", "next"),
    "summary.json": ("export", "next"),
    "hashes.json": ("export", "next"),
    "metrics.jsonl": ("resume",),
    "samples.jsonl": ("resume",),
    "reference_logprobs.pt": ("resume",),
}


def files(runs: Path, run: str) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Yield part of the run, path, and readers of every file that is read."""
    for file in sorted((runs / run / "model").rglob("*")):
        yield "model/", str(file.relative_to(runs)), OF_MODEL
    for file in sorted((runs / run / "checkpoints").iterdir()):
        yield "checkpoints/", str(file.relative_to(runs)), ("resume",)
    for name, by in OF_RUN.items():
        if (runs / run / name).is_file():
            yield "files", f"{run}/{name}", by
    if run == "lora":
        for file in sorted((runs / "sft/model").rglob("*")):
            yield "base", str(file.relative_to(runs)), ("next", "export", "evaluate")


def flipped(folder: Path, run: str, part: str, few: bool = False) -> Outcome:
    """Damage every file of a part of a run."""
    began = time.monotonic()
    import_commands()
    runs = folder.parent / f"flipped-bits.{run}"
    made = folder.parent / f"{runs.name}.made"
    if not made.exists():
        shutil.rmtree(runs, ignore_errors=True)
        write_runs(runs, run)
        made.touch()
    trials = Trials(runs, folder)
    names = readers(run)
    for found, name, by in files(runs, run):
        if found == part and (runs / name).is_file():
            trials.try_file(run, name, [each for each in by if each in names], few)
    total = trials.counts.total() + len(trials.bad)
    counts = ", ".join(f"{number} {name}" for name, number in sorted(trials.counts.items()))
    note = f"{total} damages: {counts}" + "".join(f"; UNNOTICED {each}" for each in trials.bad[:10])
    return Outcome(0, not trials.bad, time.monotonic() - began, trials.most_lines, not trials.bad and total > 0, note)


PARTS = [(run, part) for run in TRAINING for part in ("model/", "checkpoints/", "files")] + [("lora", "base")]
FAULTS = [
    *(Fault(f"flipped bits: {run}, {part}", True, partial(flipped, run=run, part=part)) for run, part in PARTS),
    Fault("flipped bits: sft, model/, one for each file", False, partial(flipped, run="sft", part="model/", few=True)),
]
