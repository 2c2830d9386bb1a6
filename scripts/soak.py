"""Train for long on a tiny model, and see that nothing grows that must not.

    python scripts/soak.py                         20,000 steps of SFT and 300 iterations of PPO, some minutes
    python scripts/soak.py --stages ppo --units 50 fewer
    python scripts/soak.py --stages sft KEY=VALUE  with further overrides of the runs

A callback measures the process and its run folder 100 times: memory (resident; held by torch's tensors), objects,
file descriptors, threads, checkpoints and other files. Before every measurement Python's garbage is collected and the
C library gives back what it holds of freed memory, so that what is left is in use. After a warm-up of a fifth of the
run a line is fitted by the median of the slopes between all pairs (Theil and Sen), with a 95% interval by resampling
blocks of its residuals, since neighbours are alike. The exit code is 1 if an interval is completely above its bound.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer

MEASUREMENTS = 100  # of a run
WARM_UP = 0.2  # of a run: caches fill, lazy imports happen
RESAMPLES = 400
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


@dataclass(frozen=True)
class Bound:
    """The growth that is tolerated, by how much per step (SFT) or iteration (PPO), and why."""

    per_step: float
    per_iteration: float
    why: str


BOUNDS = {
    "memory, bytes": Bound(GIB / 1e6, GIB / 1e5, "1 GiB in a million steps, or in 100,000 iterations"),
    "tensors, bytes": Bound(1.0, 1.0, "a number that is kept of every step has 4"),
    "tensors": Bound(0.01, 0.01, "one that is kept of every 100th step"),
    "objects": Bound(0.1, 1.0, "a list or dictionary that is kept of every 10th step, or of every iteration"),
    "file descriptors": Bound(1e-3, 1e-3, "the usual limit of 1,024 after a million steps"),
    "threads": Bound(1e-3, 1e-3, "as file descriptors"),
    "checkpoints": Bound(1e-4, 1e-3, "as many as save_top_k, and the last"),
    "checkpoints, bytes": Bound(1.0, 1.0, "a checkpoint's size does not depend on when it is saved"),
    "other files": Bound(1e-4, 1e-3, "lines are added to the files there are"),
    "other files, bytes": Bound(
        2 * KIB / 50, 8 * KIB, "a line of metrics every 50 steps; one and 8 samples per iteration"
    ),
}
STAGES: dict[str, tuple[int, str, list[str]]] = {  # units, what they are, the run's overrides
    "sft": (
        20_000,
        "step",
        [
            *("experiment=sft", "data.train=rows.jsonl", "data.batch_size=2", "data.val_fraction=0.1"),
            *("trainer.max_epochs=-1", "trainer.max_steps={units}", "trainer.log_every_n_steps=50"),
        ],
    ),
    "ppo": (
        300,
        "iteration",
        [
            *("experiment=ppo", "data.train=prompts.jsonl", "reward.function=mine.score", "rollout.batch_size=4"),
            *("rollout.max_new_tokens=6", "algorithm.num_minibatches=2", "trainer.max_epochs={units}"),
            "trainer.log_every_n_steps=1",
        ],
    ),
}
COMMON = [
    *("model.path=model", "run_dir=run", "trainer.accelerator=cpu", "callbacks.progress=null", "scheduler=constant"),
    *("optimizer.lr=1e-4", "logger.tracking_uri=sqlite:///mlflow.db", "+trainer.enable_progress_bar=false"),
    *("+callbacks.measure._target_=soak.Measure", "+callbacks.measure.every={every}", "+callbacks.measure.unit={unit}"),
]


# ---- measuring


class Measure(Callback):
    """Writes a line of `measures.jsonl` every few steps or iterations.

    Args:
        every: how many.
        unit: `step` or `iteration`.
    """

    def __init__(self, every: int, unit: str) -> None:
        self.every, self.unit = every, unit

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self.unit == "step" and trainer.global_step % self.every == 0:
            self._write(trainer.global_step)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.unit == "iteration" and trainer.current_epoch and trainer.current_epoch % self.every == 0:
            self._write(trainer.current_epoch)

    def _write(self, at: int) -> None:
        with Path("measures.jsonl").open("a") as file:
            file.write(json.dumps({"at": at, **measured(Path("run"))}) + "\n")


def measured(run: Path) -> dict[str, int]:
    """Return what this process and a run folder have now."""
    gc.collect()
    _give_back()
    tensors = list(_tensors())
    files = [path for path in run.rglob("*") if path.is_file()]
    checkpoints = [path for path in files if path.suffix == ".ckpt"]
    others = [path for path in files if path.parent.name != "checkpoints"]
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return {
        "memory, bytes": resident,
        "tensors, bytes": sum(dict(tensors).values()),
        "tensors": len(tensors),
        "objects": len(gc.get_objects()),
        "file descriptors": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "checkpoints": len(checkpoints),
        "checkpoints, bytes": sum(path.stat().st_size for path in checkpoints),
        "other files": len(others),
        "other files, bytes": sum(path.stat().st_size for path in others),
    }


def _tensors() -> Any:
    """Address and size of the memory of every tensor that Python knows."""
    import torch

    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor):  # `isinstance` would ask lazy objects
            storage = thing.untyped_storage()
            yield storage.data_ptr(), storage.nbytes()


def _give_back() -> None:
    """Have the C library return freed memory to the system, where it can (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


# ---- the slope


def slope(at: Sequence[float], values: Sequence[float]) -> float:
    """The median of the slopes between all pairs of points.

    >>> slope([0, 1, 2, 3], [1, 3, 5, 99])
    2.0
    """
    x, y = np.asarray(at, dtype=float), np.asarray(values, dtype=float)
    first, second = np.triu_indices(len(x), 1)
    return float(np.median((y[second] - y[first]) / (x[second] - x[first])))


def interval(at: Sequence[float], values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """The 95% interval of `slope`, from residuals resampled in blocks of the square root of their number."""
    x, y = np.asarray(at, dtype=float), np.asarray(values, dtype=float)
    fitted = slope(at, values) * x
    rest = y - fitted
    size = max(1, round(len(x) ** 0.5))
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(RESAMPLES):
        starts = draw.integers(0, len(x) - size + 1, size=-(-len(x) // size))
        found.append(slope(at, fitted + np.concatenate([rest[start : start + size] for start in starts])[: len(x)]))
    low, high = np.percentile(found, [2.5, 97.5])
    return float(low), float(high)


# ---- a run


def soaked(stage: str, units: int, further: Sequence[str], folder: Path) -> list[dict[str, int]]:
    """Run a stage in a fork of this process, in a folder, and return its measurements.

    Raises:
        RuntimeError: it failed.
    """
    from forked_command import run_command

    write_inputs(folder)
    _, unit, own = STAGES[stage]
    every = max(1, units // MEASUREMENTS)
    words = [word.format(units=units, unit=unit, every=every) for word in (*own, *COMMON)]
    scratch = folder / "scratch"
    scratch.mkdir()
    code, _, err = run_command("train", [*words, *further], folder, lambda _: None, scratch, seconds=3600)
    if code != 0:
        raise RuntimeError(f"{stage} ended with {code}: {err[-2000:]}")
    return [json.loads(line) for line in (folder / "measures.jsonl").read_text().splitlines()]


def write_inputs(folder: Path) -> None:
    """A tiny model, rows, prompts and a reward."""
    from fault_catalogue.runs import write_folder

    write_folder(folder)
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    many = [{**row, "prompt": f"{row['prompt']} {i}"} for i in range(50) for row in rows]
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in many))


@dataclass(frozen=True)
class Growth:
    """How a quantity of a run grew after its warm-up."""

    name: str
    first: int
    last: int
    slope: float
    low: float
    high: float
    bound: float

    @property
    def good(self) -> bool:
        """Return whether it may be within the bound."""
        return self.low <= self.bound


def growths(measures: Sequence[dict[str, int]], unit: str) -> list[Growth]:
    """The growth of everything that was measured."""
    kept = measures[round(len(measures) * WARM_UP) :]
    at = [row["at"] for row in kept]
    found = []
    for name, bound in BOUNDS.items():
        values = [row[name] for row in kept]
        low, high = interval(at, values)
        allowed = bound.per_step if unit == "step" else bound.per_iteration
        found.append(Growth(name, values[0], values[-1], slope(at, values), low, high, allowed))
    return found


def table(stage: str, units: int, unit: str, found: Sequence[Growth], seconds: float) -> str:
    """The growths as Markdown."""
    lines = [
        f"{stage}: {units} {unit}s in {seconds:.0f} s",
        "",
        f"| quantity | after the warm-up | at the end | per {unit} | 95% interval | bound | why |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in found:
        name = each.name if each.good else f"**GROWS** {each.name}"
        cells = (
            *(name, f"{each.first:,}", f"{each.last:,}", f"{each.slope:.3g}"),
            *(f"{each.low:.3g} to {each.high:.3g}", f"{each.bound:.3g}", BOUNDS[each.name].why),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", default=",".join(STAGES), help="separated by commas")
    parser.add_argument("--units", type=int, help="steps or iterations; default: those of the stage")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="further overrides of the runs")
    arguments = parser.parse_args()
    from forked_command import preload

    preload()
    importlib.import_module("soak")  # for the runs, which name its callback
    grown = 0
    for stage in arguments.stages.split(","):
        units = arguments.units or STAGES[stage][0]
        with tempfile.TemporaryDirectory(prefix="soak-") as scratch:
            began = time.monotonic()
            measures = soaked(stage, units, arguments.overrides, Path(scratch) / stage)
            found = growths(measures, STAGES[stage][1])
            print(table(stage, units, STAGES[stage][1], found, time.monotonic() - began), flush=True)
            grown += sum(not each.good for each in found)
    print(f"{grown} quantities grow beyond their bounds" if grown else "nothing grows beyond its bound")
    return 1 if grown else 0


if __name__ == "__main__":
    sys.exit(main())
