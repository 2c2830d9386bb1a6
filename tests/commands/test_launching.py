"""Sweeps whose jobs run elsewhere: what is checked before they are queued, where they run, how they end."""

from __future__ import annotations

import importlib.util
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from rlhf_lightning.callbacks import DurableCheckpointIO
from rlhf_lightning.commands import launching, train
from rlhf_lightning.commands.command_line import run_command
from rlhf_lightning.commands.composition import compose_with_launcher
from rlhf_lightning.commands.launching import check_jobs, has_several_jobs, in_run_folder, in_submitit, waiting_for_jobs
from rlhf_lightning.errors import UserError
from rlhf_lightning.runs.run_folder import begin_run, resume_run

SLURM = ["experiment=sft_demo", "hydra/launcher=slurm"]
TWO_NODES = [*SLURM, "trainer=ddp", "trainer.devices=8", "trainer.num_nodes=2"]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, empty_folder: Path) -> None:
    """Pretend a login node, in an environment with the extra."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(launching.shutil, "which", lambda name: name)


def test_slurm_is_asked_for_a_process_a_device_on_every_node_of_the_trainer() -> None:
    _, launcher = compose_with_launcher("train", [*TWO_NODES, "hydra.launcher.partition=gpu"])
    expected = {"nodes": 2, "tasks_per_node": 8, "gpus_per_node": 8, "partition": "gpu", "name": "sft_demo"}
    assert {key: launcher[key] for key in expected} == expected
    assert launcher["srun_args"] == ["--kill-on-bad-exit=1", "--cpus-per-task=8"]


def test_the_launchers_keys_are_those_that_submitit_takes() -> None:
    pytest.importorskip("submitit")
    from submitit import AutoExecutor
    from submitit.slurm.slurm import SlurmExecutor

    _, launcher = compose_with_launcher("train", SLURM)
    taken = SlurmExecutor._valid_parameters() | AutoExecutor._valid_parameters()
    assert launcher.keys() - taken == {"_target_", "submitit_folder", "max_num_timeout"}


def check(*overrides: str) -> None:
    check_jobs("train", overrides, None, train.check_all)


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("overrides", [SLURM, TWO_NODES, [*TWO_NODES, "seed=1,2", "hydra.launcher.qos=long"]])
def test_jobs_that_can_run_pass(overrides: list[str]) -> None:
    check(*overrides)


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["trainer=ddp"], "trainer.devices: found auto; SLURM needs the number per node: trainer.devices=8"),
        (["optimizer.lr=1e-3,-1"], "optimizer.lr: found -1; must be a number >= 0"),
        (["experiment=sft_demo,ppo_demo"], "model.path: outputs/demo/sft does not exist; first run: .*"),
        (
            ["trainer=ddp", "trainer.devices=1,2"],
            "hydra.launcher.tasks_per_node: found auto and 1; must be the same .*",
        ),
        (
            ["trainer.devices=2", "hydra.launcher.tasks_per_node=1"],
            "hydra.launcher.tasks_per_node: found 1; .*which is 2",
        ),
        (["trainer.num_nodes=2", "hydra.launcher.nodes=3"], "hydra.launcher.nodes: found 3; .*num_nodes, which is 2"),
        (["run_dir=null", "ckpt=last"], "ckpt: last may belong to another job; give the run's run_dir, or .*"),
        (
            ["hydra/launcher=basic", "trainer.devices=2"],
            "trainer.devices: found 2; a sweep .-m. without SLURM takes .*",
        ),
        (["hydra/launcher=basic", "trainer.num_nodes=2"], "trainer.num_nodes: found 2; a sweep .-m. without SLURM .*"),
    ],
)
def test_a_job_that_cannot_run_is_one_line_before_any_is_queued(overrides: list[str], line: str) -> None:
    with pytest.raises(UserError, match=f"^{line}$"):
        check(*SLURM, *overrides)


@pytest.mark.usefixtures("cluster")
def test_without_the_plugin_the_line_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"^hydra/launcher: needs the extra slurm: pip install 'rlhf-lightning\[slurm\]'$"
    ):
        check(*SLURM)


@pytest.mark.usefixtures("cluster")
def test_away_from_a_cluster_there_is_no_srun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"^hydra/launcher: there is no srun here"):
        check(*SLURM)


def test_a_sweep_has_several_jobs_if_a_key_has_several_values_or_another_sweeper_chooses_them() -> None:
    assert not has_several_jobs("train", ["seed=1", "optimizer.lr=1e-3"])
    assert has_several_jobs("train", ["seed=1,2"])
    assert has_several_jobs("train", ["hydra/sweeper=optuna"])


SWEEP = "outputs/sweeps/2026-01-01_00-00-00"
CONFIG: dict[str, Any] = {"name": "sft", "run_dir": None, "ckpt": None}


@pytest.mark.usefixtures("empty_folder")
def test_a_jobs_run_folder_is_a_function_of_the_sweep_and_the_jobs_number() -> None:
    folders = [in_run_folder(CONFIG, SWEEP, number)["run_dir"] for number in (0, 1)]
    assert folders == ["outputs/sft/2026-01-01_00-00-00_0", "outputs/sft/2026-01-01_00-00-00_1"]
    assert in_run_folder({**CONFIG, "run_dir": "mine"}, SWEEP, 1) == {**CONFIG, "run_dir": "mine"}


def test_a_job_that_resumes_a_file_goes_on_in_its_run_folder(empty_folder: Path) -> None:
    file = save(empty_folder / "earlier")
    (empty_folder / "earlier" / "config.yaml").write_text("{}")
    assert in_run_folder({**CONFIG, "ckpt": str(file)}, SWEEP, 0)["run_dir"] == str(empty_folder / "earlier")


def save(folder: Path) -> Path:
    file = folder / "checkpoints" / "last.ckpt"
    DurableCheckpointIO(folder).save_checkpoint({}, file)
    return file


@pytest.mark.usefixtures("empty_folder")
@pytest.mark.parametrize("variable", ["SLURM_JOB_ID", "SUBMITIT_LOCAL_JOB_ID"])
def test_a_job_that_is_queued_again_resumes_what_it_has_saved_itself(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ckpt(named: str | None = None) -> Any:
        return in_run_folder({**CONFIG, "run_dir": "mine", "ckpt": named}, "sweep", 0)["ckpt"]

    monkeypatch.setenv(variable, "4710")
    begin_run(Path("mine"))
    named = save(Path("mine"))
    monkeypatch.setenv(variable, "4711")
    assert ckpt() is None  # another job's
    resume_run(Path("mine"), named)
    assert ckpt(str(named)) == str(named)  # it has saved nothing yet
    save(Path("mine"))
    assert ckpt(str(named)) == "last"
    begin_run(Path("mine"))
    assert ckpt() is None
    save(Path("mine"))
    assert ckpt() == "last"
    monkeypatch.delenv(variable)
    assert ckpt() is None


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Set up signals as in a process started by submitit, with its handlers recorded."""
    pytest.importorskip("submitit")
    monkeypatch.setattr("rlhf_lightning.commands.command_line.quieten", lambda: None)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    received: list[int] = []
    former = {each: signal.getsignal(each) for each in (signal.SIGUSR2, signal.SIGTERM)}
    signal.signal(signal.SIGUSR2, lambda number, *_: received.append(number))
    yield received
    for number, handler in former.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("signum", "requeued"), [(signal.SIGUSR2, [signal.SIGUSR2]), (signal.SIGTERM, [])], ids=["warning", "SIGTERM"]
)
def test_a_job_is_queued_again_after_submitits_warning_only(signum: int, requeued: list[int], submitted: Any) -> None:
    went_on = []

    def body() -> None:
        os.kill(os.getpid(), signum)
        went_on.append(list(submitted))

    with pytest.raises(SystemExit) as end, in_submitit():
        run_command(body)
    assert not went_on
    assert end.value.code == 143
    assert submitted == requeued


def test_a_job_ends_with_the_code_that_the_command_would_have(submitted: Any, capsys: Any) -> None:
    bug = "unexpected error: RuntimeError: bug"
    for error, code, line in ((UserError("wrong"), 2, "error: wrong"), (RuntimeError("bug"), 1, bug)):

        def body(error: Exception = error) -> None:
            raise error

        with pytest.raises(SystemExit) as end, in_submitit():
            run_command(body)
        assert end.value.code == code
        assert capsys.readouterr().err.startswith(line)


def test_what_submitit_says_of_a_job_is_printed_without_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    utils = pytest.importorskip("submitit.core.utils")
    with pytest.raises(SystemExit) as end, waiting_for_jobs():
        raise utils.UncompletedJobError("Job 1 failed")
    assert end.value.code == 1
    assert capsys.readouterr().err.startswith("Job 1 failed\n")
    with pytest.raises(RuntimeError, match="a bug"), waiting_for_jobs():
        raise RuntimeError("a bug")
