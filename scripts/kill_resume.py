"""Kill training runs with SIGKILL at random moments, resume them, and compare their ends with uninterrupted runs.

    python scripts/kill_resume.py                          100 kills over SFT, reward model, PPO and DPO
    python scripts/kill_resume.py --kills 20 --stages ppo  fewer
    python scripts/kill_resume.py --temporary /dev/shm     temporary files on another file system than the checkpoints
    python scripts/kill_resume.py --devices 2 --kills 8    the command itself on two processes (slower)
    python scripts/kill_resume.py --devices 2 --trainer fsdp2 --kills 8

Every second kill is at a random moment of the run, the others while its files are being saved: before or after one of
the writes, syncs and renames. Some runs are killed twice. A run is equal if its exported weights, metrics.jsonl,
samples.jsonl and summary.json are bitwise those of the uninterrupted run, except for times and speeds; otherwise the
exit code is 1. With one process every run is a fork of this one, which has imported the libraries once.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf_lightning import durable
from rlhf_lightning.commands.composition import compose_config
from rlhf_lightning.process.quiet import quieten

ROOT = Path(__file__).resolve().parent.parent
COMMON = [
    "logger=none",
    "callbacks.progress=null",
    "+trainer.enable_progress_bar=false",
    "trainer.accelerator=cpu",
    "trainer.log_every_n_steps=2",
    "trainer.max_epochs=3",
    "prepare=null",
]
STEPS = ["callbacks.checkpoint.every_n_epochs=null"]
# Checkpoints within epochs, at their ends, next to validations, and between accumulated batches.
STAGES = {
    "sft": [
        *("experiment=sft_demo", "model.path=base/model", "data.train=world/sft.jsonl", "data.batch_size=2"),
        *("trainer.accumulate_grad_batches=2", "trainer.val_check_interval=0.5"),
        *(*STEPS, "callbacks.checkpoint.every_n_train_steps=1"),
    ],
    "reward": [
        *("experiment=reward_demo", "model.path=base/sft", "data.train=world/preferences_train.jsonl"),
        *("data.val=world/preferences_test.jsonl", "data.batch_size=6", "data.limit=24"),
    ],
    "ppo": [
        *(
            "experiment=ppo_demo",
            "model.path=base/sft",
            "reward.model=base/reward",
            "data.train=world/prompts_train.jsonl",
        ),
        *("rollout.batch_size=16", "rollout.max_new_tokens=8", "algorithm.num_minibatches=2", "trainer.max_epochs=4"),
        "algorithm.shaping.normalize=true",
    ],
    "dpo": [
        *("experiment=dpo_demo", "model.path=base/sft", "data.train=world/preferences_train.jsonl"),
        *("data.val=world/preferences_test.jsonl", "data.batch_size=6", "data.limit=24"),
        "algorithm.precompute_reference=true",
        *(*STEPS, "callbacks.checkpoint.every_n_train_steps=2"),
    ],
}
PRELOADED = (
    *("lightning.pytorch", "transformers.optimization", "datasets", "rlhf_lightning.commands.build"),
    *(
        "rlhf_lightning.algorithms",
        "rlhf_lightning.callbacks",
        "rlhf_lightning.simulation",
        "rlhf_lightning.evaluation",
    ),
)
NOT_COMPARED = ("time/", "perf/", "wall_seconds", "cpu_seconds", "tokens_per_second")
KILLED = -signal.SIGKILL


@dataclass
class Stage:
    """A stage's uninterrupted run, and what became of the killed ones."""

    name: str
    end: dict[str, Any]
    seconds: float
    saving: int
    counts: Counter[str] = field(default_factory=Counter)
    different: list[str] = field(default_factory=list)


# ---- what a run is, and how it ends


def prepare(folder: Path) -> None:
    """Prepare the world, and a model with dropout, so that lost random states show."""
    from rlhf_lightning.simulation import write_world

    write_world(str(folder / "world"), n_train_prompts=24, n_test_prompts=8, demonstrations_per_prompt=1)
    shutil.copytree(folder / "world/models/llama", folder / "base/model")
    file = folder / "base/model/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"attention_dropout": 0.1}))


def end_of(run: Path) -> dict[str, Any]:
    """Return everything that must be equal at the end of a run."""
    weights = {
        f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted((run / "model").glob("*.safetensors"))
    }
    lines = {name: rows(run / name) for name in ("metrics.jsonl", "samples.jsonl")}
    return {"weights": weights, **lines, "summary": compared(json.loads((run / "summary.json").read_text()))}


def rows(file: Path) -> list[dict[str, Any]]:
    return [compared(json.loads(line)) for line in file.read_text().split("\n") if line] if file.exists() else []


def compared(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if not any(part in key for part in NOT_COMPARED)}


# ---- one process: forks of this one


def in_fork(body: Callable[[], object], folder: Path) -> int:
    """Return the id of a child that runs `body` in `folder`; its output goes to a file there."""
    if (child := os.fork()) != 0:
        return child
    code = 1
    try:
        os.chdir(folder)
        output = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        body()
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(child: int, seconds: float = 600.0) -> int:
    """Return the child's exit code; it is killed after `seconds`."""
    end = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.002)


def watch_saving(at: int | None = None, signum: int = signal.SIGKILL, count: Path | None = None) -> Callable[[], int]:
    """In a child: send itself a signal at the `at`-th half of a write, sync or rename; return their counter.

    Args:
        at: from 0; None: never.
        signum: the signal.
        count: gets a byte for each half.
    """
    passed = 0

    def half() -> None:
        nonlocal passed
        if passed == at:
            os.kill(os.getpid(), signum)
        passed += 1
        if count is not None:
            with count.open("ab") as file:
                file.write(b".")

    def halved(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any) -> Any:
            half()
            result = call(*arguments)
            half()
            return result

        return wrapped

    os.fsync, os.replace = halved(os.fsync), halved(os.replace)
    durable.HashingFile.write = halved(durable.HashingFile.write)  # type: ignore[method-assign]
    return lambda: passed


class Forks:
    """Runs a stage's config in forks."""

    def __init__(self, folder: Path, temporary: str | None) -> None:
        for name in PRELOADED:
            importlib.import_module(name)
        self.folder, self.temporary = folder, temporary

    def start(self, config: dict[str, Any], kill_at: int | None = None, count: Path | None = None) -> int:
        def body() -> None:
            import torch

            from rlhf_lightning.commands.train import train

            torch.set_num_threads(1)
            if self.temporary:
                os.environ["TMPDIR"], tempfile.tempdir = self.temporary, None
            halves = watch_saving(kill_at)
            train(config)
            if count is not None:
                count.write_text(str(halves()))

        return in_fork(body, self.folder)

    def whole(self, config: dict[str, Any]) -> tuple[float, int]:
        """Return an uninterrupted run's seconds, and the halves of its writes, syncs and renames."""
        count, started = self.folder / "count.txt", time.monotonic()
        check(wait(self.start(config, count=count)), self.folder)
        return time.monotonic() - started, int(count.read_text())

    def killed(self, config: dict[str, Any], stage: Stage, draw: random.Random) -> str | None:
        """Return where the run was killed; None if it ended first."""
        if draw.random() < 0.5:
            code, where = wait(self.start(config), draw.uniform(0.0, stage.seconds)), "any moment"
        else:
            code, where = wait(self.start(config, kill_at=draw.randrange(stage.saving))), "saving"
        if code != KILLED:
            check(code, self.folder)
        return where if code == KILLED else None

    def resumed(self, config: dict[str, Any]) -> None:
        check(wait(self.start(config)), self.folder)


def check(code: int, folder: Path) -> None:
    if code:
        raise SystemExit(f"a run ended with {code}:\n{(folder / 'output.txt').read_text()[-3000:]}")


# ---- several processes: the command


class Commands:
    """Runs a stage's overrides with the command itself, which starts its further processes."""

    def __init__(
        self, folder: Path, temporary: str | None, overrides: dict[str, list[str]], trainer: list[str]
    ) -> None:
        self.folder, self.overrides, self.trainer = folder, overrides, trainer
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT), **({"TMPDIR": temporary} if temporary else {})}

    def start(self, config: dict[str, Any]) -> subprocess.Popen[bytes]:
        stage = Path(config["run_dir"]).parts[1]
        own = [f"run_dir={config['run_dir']}", *(["ckpt=last"] if config["ckpt"] else [])]
        command = [str(Path(sys.executable).with_name("rlhf-train")), *self.overrides[stage], *self.trainer, *own]
        output = (self.folder / "output.txt").open("ab")
        return subprocess.Popen(
            command, cwd=self.folder, env=self.environment, stdout=output, stderr=output, start_new_session=True
        )

    def wait_for_checkpoint(self, run: subprocess.Popen[bytes], config: dict[str, Any], since: float) -> None:
        """Wait until the run has saved its first checkpoint: before that, a short run mostly imports."""
        file = self.folder / config["run_dir"] / "checkpoints/last.ckpt"
        while run.poll() is None and not (file.exists() and file.stat().st_mtime > since):
            time.sleep(0.005)

    def whole(self, config: dict[str, Any]) -> tuple[float, int]:
        run = self.start(config)
        self.wait_for_checkpoint(run, config, 0.0)
        started = time.monotonic()
        check(run.wait(), self.folder)
        return time.monotonic() - started, 0

    def killed(self, config: dict[str, Any], stage: Stage, draw: random.Random) -> str | None:
        since = time.time()
        run = self.start(config)
        self.wait_for_checkpoint(run, config, since)
        try:
            code = run.wait(draw.uniform(0.0, stage.seconds))
        except subprocess.TimeoutExpired:
            os.killpg(run.pid, signal.SIGKILL)
            code = run.wait()
        if code != KILLED:
            check(code, self.folder)
        return "any moment" if code == KILLED else None

    def resumed(self, config: dict[str, Any]) -> None:
        check(self.start(config).wait(), self.folder)


# ---- the experiment


def kill_and_resume(
    runs: Forks | Commands, config: dict[str, Any], stage: Stage, kills: int, draw: random.Random
) -> int:
    """Kill one run once or twice (at most `kills` times), resuming it each time to its end; return the kills."""
    run = runs.folder / config["run_dir"]
    wanted, done, ended = min(kills, draw.choice((1, 1, 2))), 0, False
    while done < wanted and not ended:
        where = runs.killed(config, stage, draw)
        ended = where is None
        if where is not None:
            done += 1
            found = any((run / "checkpoints").glob("*.ckpt"))
            config = {**config, "ckpt": "last" if found else None}
            stage.counts.update((where, "resumed" if found else "begun again"))
    if not ended:
        runs.resumed(config)
    end = end_of(run)
    if different := [named(part, stage.end[part], end[part]) for part in stage.end if end[part] != stage.end[part]]:
        stage.different.append(f"{stage.name} {run.name}: {', '.join(different)}")
    shutil.rmtree(run)
    return done


def named(part: str, whole: Any, resumed: Any) -> str:
    """Return the part of a run's end that differs, with its keys if it has any."""
    if not isinstance(whole, dict):
        return part
    keys = [key for key in {**whole, **resumed} if whole.get(key) != resumed.get(key)]
    return f"{part} ({', '.join(f'{key}: {whole.get(key)} -> {resumed.get(key)}' for key in keys)})"


def experiment(arguments: argparse.Namespace, folder: Path) -> list[Stage]:
    """Run all stages and all kills."""
    child = in_fork(lambda: prepare(folder), folder)
    check(wait(child), folder)
    overrides = {name: [*COMMON, *own] for name, own in STAGES.items()}
    configs = {name: compose_config("train", own) for name, own in overrides.items()}
    forks = Forks(folder, arguments.temporary)
    runs: Forks | Commands = forks
    if arguments.devices > 1:
        trainer = [f"trainer={arguments.trainer}", f"trainer.devices={arguments.devices}"]
        runs = Commands(folder, arguments.temporary, overrides, trainer)
    needed = {"sft": {"reward", "ppo", "dpo"}, "reward": {"ppo"}}
    for name, users in needed.items():
        if users & set(arguments.stages):
            check(wait(forks.start({**copy.deepcopy(configs[name]), "run_dir": f"base/{name}"})), folder)
    stages = []
    for i, name in enumerate(arguments.stages):
        config = {**configs[name], "run_dir": f"runs/{name}/whole"}
        seconds, saving = runs.whole(config)
        stage = Stage(name, end_of(folder / config["run_dir"]), seconds, saving)
        stages.append(stage)
        left = arguments.kills // len(arguments.stages) + (i < arguments.kills % len(arguments.stages))
        draw = random.Random(f"{arguments.seed} {name}")
        number = 0
        while left:
            number += 1
            config = {**configs[name], "run_dir": f"runs/{name}/{number}"}
            left -= kill_and_resume(runs, config, stage, left, draw)
        stage.counts["runs"] = number
        print(line(stage), flush=True)
    return stages


def line(stage: Stage) -> str:
    c = stage.counts
    kills = c["any moment"] + c["saving"]
    return (
        f"{stage.name:<8}{kills:>6}{c['any moment']:>12}{c['saving']:>8}{c['resumed']:>9}{c['begun again']:>13}"
        f"{c['runs']:>6}{c['runs'] - len(stage.different):>7}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--devices", type=int, default=1, help="processes of a run")
    parser.add_argument("--trainer", choices=("ddp", "fsdp2"), default="ddp", help="how several processes share it")
    parser.add_argument("--temporary", metavar="FOLDER", help="TMPDIR of the runs")
    arguments = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
    quieten()
    with tempfile.TemporaryDirectory(prefix="kill-resume-") as name:
        started = time.monotonic()
        print("stage    kills  any moment  saving  resumed  begun again  runs  equal")
        stages = experiment(arguments, Path(name))
        different = [each for stage in stages for each in stage.different]
        kills = sum(stage.counts["any moment"] + stage.counts["saving"] for stage in stages)
        runs = sum(stage.counts["runs"] for stage in stages)
        print(
            f"{kills} kills, {runs - len(different)} of {runs} runs bitwise equal, {time.monotonic() - started:.0f} s"
        )
        print("\n".join(f"different: {each}" for each in different), end="\n" if different else "")
    sys.exit(1 if different else 0)


if __name__ == "__main__":
    main()
