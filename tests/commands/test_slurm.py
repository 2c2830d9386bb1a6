"""rlhf-train -m through submitit: two processes on two "nodes" of a fake SLURM, and a local job."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from rlhf_lightning.run_identity import read_started
from rlhf_lightning.simulation import write_world
from tests.commands.fake_slurm import install
from tests.programs import program

pytest.importorskip("submitit")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
TRAIN = [
    *("experiment=sft_demo", "logger=none", "prepare=null", "callbacks.progress=null"),
    *("+trainer.enable_progress_bar=false", "trainer.accelerator=cpu", "trainer.log_every_n_steps=2"),
    *("model.path=world/models/llama", "data.train=world/sft.jsonl", "data.batch_size=2", "trainer.max_epochs=2"),
]
CLUSTER = ["-m", "trainer=ddp", "trainer.devices=1", "trainer.num_nodes=2", "hydra/launcher=slurm"]
ALONE = ["trainer=ddp", "trainer.devices=2"]  # the same two processes, started by Lightning


@pytest.fixture
def end_of(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    return importlib.import_module("kill_resume").end_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("slurm")
    write_world(str(made / "world"), n_train_prompts=24, n_test_prompts=8, demonstrations_per_prompt=1)
    return made


@pytest.fixture(scope="module")
def environment(folder: Path) -> dict[str, str]:
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return {**os.environ, **own, **install(folder / "slurm")}


def start(folder: Path, environment: dict[str, str], *overrides: str) -> subprocess.Popen[str]:
    command = [program("rlhf-train"), *TRAIN, *overrides]
    return subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)


def end(run: subprocess.Popen[str]) -> tuple[int, str]:
    try:
        _, printed = run.communicate(timeout=400)
    finally:
        run.kill()
    return run.returncode, printed


@pytest.fixture(scope="module")
def whole(folder: Path, environment: dict[str, str]) -> Path:
    """Run seed 0 with two processes and without SLURM."""
    code, printed = end(start(folder, environment, *ALONE, "run_dir=whole"))
    assert code == 0, printed
    return folder / "whole"


def logs(folder: Path, sweep: str) -> str:
    return "\n".join(file.read_text() for file in sorted((folder / sweep).glob(".submitit/*/*_log.*")))


def test_every_job_of_a_sweep_is_one_run_of_two_processes_in_a_folder_of_its_own(
    folder: Path, environment: dict[str, str], whole: Path, end_of: Any
) -> None:
    overrides = (*CLUSTER, "seed=0,1", "run_dir=null", "hydra.sweep.dir=sweep")
    code, printed = end(start(folder, environment, *overrides))
    assert code == 0, printed + logs(folder, "sweep")
    runs = sorted((folder / "outputs" / "sft_demo").iterdir())
    assert [run.name for run in runs] == ["sweep_0", "sweep_1"]
    assert end_of(runs[0]) == end_of(whole)
    assert end_of(runs[1])["summary"]["seed"] == 1
    assert logs(folder, "sweep").count("run folder: outputs/sft_demo/") == 2  # by the first process of each


def stop_after_steps(folder: Path, run: str, signum: int) -> None:
    """Send the signal to every process of the one job, as SLURM does, once the run has logged some steps."""
    file, limit = folder / run / "metrics.jsonl", time.monotonic() + 200
    while not (file.exists() and file.read_bytes().count(b"\n") >= 3):
        assert time.monotonic() < limit
        time.sleep(0.005)
    newest = max((folder / "slurm").glob("*.pids"), key=lambda each: each.stat().st_mtime_ns)
    for process in newest.read_text().split():
        os.kill(int(process), signum)


def test_a_job_that_is_preempted_is_queued_again_and_ends_like_one_that_was_not(
    folder: Path, environment: dict[str, str], whole: Path, end_of: Any
) -> None:
    run = start(folder, environment, *CLUSTER, "run_dir=preempted", "hydra.sweep.dir=preempted_sweep")
    stop_after_steps(folder, "preempted", signal.SIGUSR2)
    began = read_started(folder / "preempted/checkpoints")
    code, printed = end(run)
    assert code == 0, printed + logs(folder, "preempted_sweep")
    assert len(list((folder / "slurm").glob("*.requeued0"))) == 1
    goes_on = read_started(folder / "preempted/checkpoints")
    assert began is not None and goes_on is not None
    assert (goes_on.run_id, goes_on.job) == (began.run_id, began.job)  # it was resumed, not begun again
    assert end_of(folder / "preempted") == end_of(whole)


def test_a_job_that_meets_its_time_limit_saves_and_says_how_to_go_on(
    folder: Path, environment: dict[str, str], whole: Path, end_of: Any
) -> None:
    limited = [*CLUSTER, "run_dir=limited", "hydra.launcher.timeout_min=5"]  # submitit takes any signal for the limit
    run = start(folder, environment, *limited, "hydra.sweep.dir=limited_sweep")
    stop_after_steps(folder, "limited", signal.SIGUSR2)
    code, printed = end(run)
    assert code == 1
    assert "stopped by SIGTERM; go on with the same command with ckpt=last run_dir=limited" in printed
    assert "not requeued because: timed-out too many times" in printed
    newest = max((folder / "slurm").glob("*.code"), key=lambda each: each.stat().st_mtime_ns)
    assert newest.read_text() == "143"
    code, printed = end(start(folder, environment, *limited, "hydra.sweep.dir=resumed_sweep", "ckpt=last"))
    assert code == 0, printed + logs(folder, "resumed_sweep")
    assert end_of(folder / "limited") == end_of(whole)


def test_one_process_that_fails_ends_the_job(folder: Path, environment: dict[str, str]) -> None:
    (folder / "mine.py").write_text(
        "import os, time\n"
        "def fail():\n"
        "    assert os.environ['SLURM_PROCID'] == '0', 'the second one'\n"
        "    time.sleep(300)\n"
    )
    began = time.monotonic()
    overrides = (*CLUSTER, "+prepare._target_=mine.fail", "run_dir=failed", "hydra.sweep.dir=failed_sweep")
    code, printed = end(start(folder, environment, *overrides))
    assert code == 1
    assert "failed_sweep/.submitit" in printed
    assert "AssertionError: the second one" in logs(folder, "failed_sweep")
    assert time.monotonic() - began < 250


def test_a_local_job_is_a_run_of_one_process(folder: Path, environment: dict[str, str]) -> None:
    overrides = ("-m", "hydra/launcher=submitit_local", "run_dir=local", "trainer.max_epochs=1")
    code, printed = end(start(folder, environment, *overrides))
    assert code == 0, printed
    assert (folder / "local" / "summary.json").is_file()
