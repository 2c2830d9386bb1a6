"""Runs of the real commands, killed and resumed, end bitwise like uninterrupted ones."""

from __future__ import annotations

import importlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from rlhf_lightning.commands import pipeline
from rlhf_lightning.commands.command_line import run_command
from rlhf_lightning.errors import Terminated
from rlhf_lightning.runs.run import Run
from rlhf_lightning.simulation import write_world
from tests.programs import program

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def kill_resume(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    return importlib.import_module("kill_resume")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kill")
    write_world(str(folder / "world"), n_train_prompts=24, n_test_prompts=8, demonstrations_per_prompt=1)
    return folder


def script(*arguments: str, seconds: float = 550.0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts/kill_resume.py"), *arguments]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=seconds, check=False)


def equal(output: str) -> tuple[int, int, int]:
    """Return kills, equal runs, and runs."""
    found = re.search(r"(\d+) kills, (\d+) of (\d+) runs bitwise equal", output)
    assert found, output
    return int(found[1]), int(found[2]), int(found[3])


@pytest.mark.slow
def test_a_sample_of_the_kills() -> None:
    done = script("--kills", "1", "--stages", "sft")
    assert done.returncode == 0, done.stdout + done.stderr
    kills, same, runs = equal(done.stdout)
    assert kills == 1
    assert same == runs > 0


@pytest.mark.slow
def test_a_sample_of_the_kills_of_all_stages() -> None:
    done = script("--kills", "4")
    assert done.returncode == 0, done.stdout + done.stderr
    kills, same, runs = equal(done.stdout)
    assert kills == 4
    assert same == runs > 0


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "reward", "ppo", "dpo"])
def test_kills_with_temporary_files_on_another_file_system(stage: str) -> None:
    done = script("--kills", "10", "--stages", stage, "--temporary", "/dev/shm")
    assert done.returncode == 0, done.stdout + done.stderr
    assert equal(done.stdout)[0] == 10


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["ddp", "fsdp2"])
@pytest.mark.parametrize("stage", ["sft", "reward", "ppo", "dpo"])
def test_kills_of_two_processes(stage: str, trainer: str) -> None:
    done = script("--kills", "2", "--stages", stage, "--devices", "2", "--trainer", trainer)
    assert done.returncode == 0, done.stdout + done.stderr
    assert equal(done.stdout)[0] == 2


# ---- the command itself


COMMON = [
    *("logger=none", "prepare=null", "callbacks.progress=null", "+trainer.enable_progress_bar=false"),
    *("trainer.accelerator=cpu", "model.path=world/models/llama", "trainer.log_every_n_steps=2"),
]
SFT = [
    *(*COMMON, "experiment=sft_demo", "data.train=world/sft.jsonl", "data.batch_size=2", "trainer.max_epochs=4"),
    *("callbacks.checkpoint.every_n_epochs=null", "callbacks.checkpoint.every_n_train_steps=5"),
]
PPO = [
    *(*COMMON, "experiment=ppo_demo", "data.train=world/prompts_train.jsonl", "rollout.batch_size=16"),
    *("reward.model=null", "reward.function=rlhf_lightning.simulation.gold_reward"),
    *("rollout.max_new_tokens=16", "trainer.max_epochs=5"),
]


def start(folder: Path, overrides: list[str], run: str, *further: str) -> subprocess.Popen[str]:
    command = [program("rlhf-train"), *overrides, f"run_dir={run}", *further]
    return subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)


def stop(run: subprocess.Popen[str], folder: Path, lines: int, signum: int) -> tuple[int, str]:
    """Send the signal once metrics.jsonl has this many lines; return the exit code and what stderr received."""
    file = folder / "metrics.jsonl"
    while run.poll() is None:  # however long it takes on a busy machine
        if file.exists() and file.read_bytes().count(b"\n") >= lines:
            run.send_signal(signum)
            break
        time.sleep(0.005)
    _, printed = run.communicate()
    return run.returncode, printed


CASES = {"sft": (SFT, 10), "ppo": (PPO, 2)}  # killed when metrics.jsonl has this many lines


@pytest.mark.parametrize("stage", [pytest.param("sft", marks=pytest.mark.slow), "ppo"])
def test_a_killed_command_is_resumed_to_the_same_end(stage: str, world: Path, kill_resume: Any) -> None:
    """SFT in the middle of an epoch, PPO after an iteration."""
    overrides, lines = CASES[stage]
    whole = start(world, overrides, f"{stage}-whole")  # in parallel with the other: most of the time goes to imports
    code, printed = stop(start(world, overrides, stage), world / stage, lines, signal.SIGKILL)
    assert code == -signal.SIGKILL, printed
    _, printed = (resumed := start(world, overrides, stage, "ckpt=last")).communicate()
    assert resumed.returncode == 0, printed
    _, printed = whole.communicate()
    assert whole.returncode == 0, printed
    end = kill_resume.end_of(world / stage)
    assert len(end["metrics.jsonl"]) > lines
    assert bool(end["samples.jsonl"]) == (stage == "ppo")
    assert end == kill_resume.end_of(world / f"{stage}-whole")


@pytest.mark.slow
@pytest.mark.parametrize(
    "further", [[], ["trainer.devices=2", "trainer.strategy=ddp"]], ids=["one process", "two processes"]
)
@pytest.mark.parametrize(("signum", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_command_that_is_stopped_is_resumed_to_the_same_end(
    signum: signal.Signals, exit_code: int, further: list[str], world: Path, kill_resume: Any
) -> None:
    overrides, name = [*SFT, *further], f"{signum.name}{len(further)}"
    whole = start(world, overrides, f"{name}-whole")
    code, printed = stop(start(world, overrides, name), world / name, 3, signum)
    assert code == exit_code
    assert (
        printed.splitlines()[-1]
        == f"stopped by {signum.name}; go on with the same command with ckpt=last run_dir={name}"
    )
    _, printed = (resumed := start(world, overrides, name, "ckpt=last")).communicate()
    assert resumed.returncode == 0, printed
    _, printed = whole.communicate()
    assert whole.returncode == 0, printed
    assert kill_resume.end_of(world / name) == kill_resume.end_of(world / f"{name}-whole")


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_outside_training_is_one_line_and_its_code(
    signum: int, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rlhf_lightning.commands.command_line.quieten", lambda: None)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    former = signal.getsignal(signum)
    with pytest.raises(SystemExit) as end:
        run_command(lambda: os.kill(os.getpid(), signum))
    assert end.value.code == code
    assert signal.getsignal(signum) is former
    name = signal.Signals(signum).name
    assert capsys.readouterr().err == f"stopped by {name}; start it again with the same command\n"


def test_a_process_that_lightning_has_started_leaves_it_to_the_first_one_to_stop(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rlhf_lightning.commands.command_line.quieten", lambda: None)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.setenv("LOCAL_RANK", "1")

    def stopped_with_the_others() -> None:
        for signum in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            os.kill(os.getpid(), signum)
        raise Terminated

    with pytest.raises(SystemExit) as end:
        run_command(stopped_with_the_others)
    assert end.value.code == 0  # Lightning would kill the first process otherwise
    assert capsys.readouterr().err == ""


def test_a_stopped_pipeline_says_how_to_go_on(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(run: Run) -> None:
        run.find_place()
        run.begun = run.saved = True
        checkpoints = run.folder / "checkpoints"
        checkpoints.mkdir(parents=True)
        (checkpoints / "last.ckpt").write_bytes(b"x")
        raise Terminated

    monkeypatch.setattr("rlhf_lightning.commands.command_line.quieten", lambda: None)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.setattr(pipeline, "carry_out", stopped)
    monkeypatch.setattr("rlhf_lightning.commands.build.prepare", lambda config: None)
    for name in ("rehearse_objects", "rehearse_inputs", "rehearse_evaluation"):
        monkeypatch.setattr(f"rlhf_lightning.commands.rehearsal.{name}", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["rlhf-pipeline", "pipeline=demo", "logger=none", "run_dir=here"])
    with pytest.raises(SystemExit) as end:
        pipeline.main()
    assert end.value.code == 143
    assert capsys.readouterr().err == (
        "stopped by SIGTERM; go on with the same command with from=sft stages.sft.ckpt=last run_dir=here\n"
    )
