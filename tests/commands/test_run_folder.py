from __future__ import annotations

import os
import re

import pytest
import torch

from rlhf_lightning import durable
from rlhf_lightning.callbacks import DurableCheckpointIO
from rlhf_lightning.durable import manifest_of, save_with_manifest
from rlhf_lightning.errors import UserError
from rlhf_lightning.runs import run_folder
from rlhf_lightning.runs.checkpoints import find_checkpoint, has_checkpoint, refuse_foreign_resume
from rlhf_lightning.runs.run_folder import begin_run, choose_run_dir, forget_run_dir


@pytest.fixture(autouse=True)
def no_shared_folder(monkeypatch, empty_folder):
    monkeypatch.delenv("RLHF_LIGHTNING_RUN_DIR", raising=False)
    yield
    forget_run_dir()


def checkpoint(folder, age: float, name: str = "last.ckpt"):
    file = folder / "checkpoints" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text("{}")
    save_with_manifest(file, lambda opened: opened.write(b"weights"), epoch=1, global_step=5)
    os.utime(file, (1e9 - age, 1e9 - age))
    return file


def test_the_default_is_the_experiment_and_the_time():
    folder = choose_run_dir({"name": "ppo", "run_dir": None})
    assert folder.parent.as_posix() == "outputs/ppo"


def test_two_runs_of_the_same_second_get_two_folders():
    first = choose_run_dir({"name": "ppo"})
    first.mkdir(parents=True)
    forget_run_dir()
    assert choose_run_dir({"name": "ppo"}) != first


def test_further_processes_of_a_run_find_its_folder():
    first = choose_run_dir({"name": "ppo"})
    first.mkdir(parents=True)
    assert choose_run_dir({"name": "ppo"}) == first


@pytest.mark.parametrize(
    ("variables", "nodes"), [({"WORLD_SIZE": "2"}, 1), ({"SLURM_NTASKS": "2"}, 1), ({"NODE_RANK": "0"}, 1), ({}, 2)]
)
def test_processes_that_were_not_started_by_the_first_do_not_choose_a_folder_each(variables, nodes, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"^run_dir: missing; the processes of srun, torchrun or several nodes"):
        choose_run_dir({"name": "ppo", "run_dir": None, "trainer": {"num_nodes": nodes}})
    assert choose_run_dir({"run_dir": "mine", "trainer": {}}).name == "mine"


def test_the_last_checkpoint_is_the_newest_of_the_experiment(empty_folder):
    checkpoint(empty_folder / "outputs" / "ppo" / "a", age=10)
    newest = checkpoint(empty_folder / "outputs" / "ppo" / "b", age=5)
    assert find_checkpoint({"name": "ppo", "ckpt": "last"}).resolve() == newest


def test_a_resumed_run_goes_on_in_its_own_folder(empty_folder):
    file = checkpoint(empty_folder / "outputs" / "ppo" / "a", age=10)
    for ckpt in (str(file), "last"):
        config = {"name": "ppo", "ckpt": ckpt}
        assert choose_run_dir(config, find_checkpoint(config)) == empty_folder / "outputs" / "ppo" / "a"
        forget_run_dir()


def test_without_ckpt_there_is_none(empty_folder):
    checkpoint(empty_folder / "outputs" / "ppo" / "a", age=10)
    assert find_checkpoint({"name": "ppo", "ckpt": None}) is None


def cut(file):
    file.write_bytes(b"")


def flip(file):
    file.write_bytes(b"wEights")


def spoil_manifest(file):
    manifest_of(file).write_text("{")


def without_manifest(file):
    manifest_of(file).unlink()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (cut, "it has 0 bytes, its manifest says 7"),
        (flip, "its hash is not its manifest's"),
        (spoil_manifest, "last.ckpt.manifest.json cannot be read"),
        (without_manifest, "it has no manifest and is not a whole zip archive"),
    ],
)
def test_a_broken_checkpoint_is_passed_over_with_a_line_that_says_why(damage, reason, empty_folder, capsys):
    run = empty_folder / "run"
    older = checkpoint(run, age=10, name="epoch=0001.ckpt")
    newest = checkpoint(run, age=5)
    damage(newest)
    os.utime(newest, (1e9 - 5, 1e9 - 5))
    assert find_checkpoint({"ckpt": "last", "run_dir": str(run)}) == older
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"ckpt: {newest} is skipped: {reason}")


def test_a_broken_checkpoint_that_is_named_is_an_error(empty_folder):
    file = checkpoint(empty_folder / "run", age=1)
    flip(file)
    with pytest.raises(UserError, match=r"^ckpt: .*last.ckpt is broken: its hash"):
        find_checkpoint({"ckpt": str(file)})


def test_another_tools_checkpoint_is_taken_when_it_is_named(empty_folder):
    file = checkpoint(empty_folder / "run", age=1)
    manifest_of(file).unlink()
    assert find_checkpoint({"ckpt": str(file)}) == file


def write_states(path, **content) -> None:
    """Write a file as torch does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)


def fsdp(folder) -> None:
    """Write a checkpoint like Lightning's FSDP strategies: shards, their index, and unsharded state last."""
    write_states(folder / "meta.pt", epoch=1)
    (folder / "__0_0.distcp").write_bytes(b"x")
    (folder / ".metadata").write_bytes(b"x")


def deepspeed(folder) -> None:
    """Write ZeRO-2 state like DeepSpeed on two processes, `latest` last."""
    states = folder / "checkpoint"
    write_states(states / "mp_rank_00_model_states.pt", module={}, dp_world_size=2, mp_world_size=1, global_steps=70)
    for rank in range(2):
        write_states(states / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt", optimizer_state_dict={})
    (folder / "zero_to_fp32.py").write_text("")
    (folder / "latest").write_text("checkpoint")


def deepspeed_3(folder) -> None:
    """Write ZeRO-3 state: every process also has model states."""
    states = folder / "checkpoint"
    for rank in range(2):
        name = f"zero_pp_rank_{rank}_mp_rank_00"
        write_states(states / f"{name}_model_states.pt", dp_world_size=2)
        write_states(states / f"{name}_optim_states.pt", optimizer_state_dict={})
    (folder / "latest").write_text("checkpoint")


def cut_short(file) -> None:
    file.write_bytes(file.read_bytes()[:-30])


@pytest.mark.parametrize("write", [fsdp, deepspeed, deepspeed_3])
def test_the_last_checkpoint_may_be_a_folder(write, empty_folder, capsys):
    whole, half = (empty_folder / "run" / "checkpoints" / name for name in ("a.ckpt", "b.ckpt"))
    write(whole)
    half.mkdir(parents=True)
    (half / "__0_0.distcp").write_bytes(b"x")
    for age, folder in ((2, whole), (1, half)):
        os.utime(folder, (1e9 - age, 1e9 - age))
    assert find_checkpoint({"ckpt": "last", "run_dir": str(empty_folder / "run")}) == whole
    assert "b.ckpt is skipped: the folder has neither .metadata" in capsys.readouterr().err
    assert find_checkpoint({"ckpt": str(whole)}) == whole


@pytest.mark.parametrize(
    ("write", "damage", "reason"),
    [
        (fsdp, lambda folder: (folder / ".metadata").unlink(), "the folder has neither .metadata"),
        (fsdp, lambda folder: (folder / "meta.pt").unlink(), "the folder has no whole meta.pt"),
        (fsdp, lambda folder: cut_short(folder / "meta.pt"), "the folder has no whole meta.pt"),
        (fsdp, lambda folder: (folder / "__0_0.distcp").unlink(), r"the folder has no \*.distcp files"),
        (deepspeed, lambda folder: (folder / "latest").unlink(), "the folder has neither .metadata"),
        (
            deepspeed,
            lambda folder: cut_short(folder / "checkpoint/mp_rank_00_model_states.pt"),
            "checkpoint/mp_rank_00_model_states.pt is not whole",
        ),
        (
            deepspeed,
            lambda folder: (folder / "checkpoint/bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt").unlink(),
            "checkpoint/ has optimiser states of 1 of 2 processes",
        ),
        (
            deepspeed_3,
            lambda folder: (folder / "checkpoint/zero_pp_rank_0_mp_rank_00_optim_states.pt").unlink(),
            "checkpoint/ has optimiser states of 1 of 2 processes",
        ),
        (
            deepspeed_3,
            lambda folder: [file.unlink() for file in folder.glob("checkpoint/*model_states.pt")],
            "the folder has no model states in checkpoint/",
        ),
    ],
)
def test_a_folder_that_is_not_complete_is_passed_over_and_refused_by_name(write, damage, reason, empty_folder, capsys):
    folder = empty_folder / "run/checkpoints/last.ckpt"
    write(folder)
    damage(folder)
    with pytest.raises(UserError, match=r"^ckpt: no whole checkpoint"):
        find_checkpoint({"ckpt": "last", "run_dir": str(empty_folder / "run")})
    assert re.search(f"last.ckpt is skipped: {reason}", capsys.readouterr().err)
    with pytest.raises(UserError, match=f"^ckpt: .*last.ckpt is broken: {reason}"):
        find_checkpoint({"ckpt": str(folder)})


def test_a_checkpoint_from_within_an_iteration_is_passed_over_and_refused_by_name(empty_folder, capsys):
    run = empty_folder / "run"
    older = checkpoint(run, age=10, name="epoch=0001.ckpt")
    newest = run / "checkpoints" / "on_exception.ckpt"
    reason = "it was saved within an iteration"
    save_with_manifest(newest, lambda opened: opened.write(b"weights"), cannot_resume=reason)
    os.utime(newest, (1e9 - 5, 1e9 - 5))
    assert find_checkpoint({"ckpt": "last", "run_dir": str(run)}) == older
    assert f"on_exception.ckpt is skipped: {reason}" in capsys.readouterr().err
    with pytest.raises(UserError, match=f"^ckpt: .*on_exception.ckpt: {reason}; take another one"):
        find_checkpoint({"ckpt": str(newest)})
    older.unlink()
    assert not has_checkpoint(run)


@pytest.mark.parametrize("ckpt", ["best", "hpc"])
def test_lightnings_own_words_are_no_checkpoints(ckpt, empty_folder):
    with pytest.raises(UserError, match=rf"^ckpt: {ckpt} does not exist; give the path of a checkpoint, or last"):
        find_checkpoint({"ckpt": ckpt})


def test_what_lightning_has_saved_for_a_slurm_job_is_of_the_run_and_is_not_taken_unasked(empty_folder, monkeypatch):
    run = empty_folder / "run"
    checkpoint(run, age=1)
    file = run / "hpc_ckpt_1.ckpt"
    save_with_manifest(file, lambda opened: opened.write(b"weights"))
    assert run_folder.run_of_checkpoint(file) == run
    refuse_foreign_resume(run)  # elsewhere Lightning does not look for it
    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.setenv("SLURM_JOB_NAME", "train")
    with pytest.raises(UserError, match=r"^run_dir: .*hpc_ckpt_1.ckpt is a checkpoint that Lightning has saved"):
        refuse_foreign_resume(run)


def test_a_slurm_job_that_is_queued_again_goes_on_from_its_own_checkpoint(empty_folder, monkeypatch):
    run, config = empty_folder / "run", {"run_dir": str(empty_folder / "run"), "ckpt": None}
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    begin_run(run)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert find_checkpoint(config) is None  # it had not saved yet
    file = checkpoint(run, age=-4e9)
    assert find_checkpoint(config) == file
    assert find_checkpoint({**config, "run_dir": None}) is None
    monkeypatch.setenv("SLURM_JOB_ID", "4712")  # another job, even if it was requeued too
    assert find_checkpoint(config) is None
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.delenv("SLURM_RESTART_COUNT")
    assert find_checkpoint(config) is None


def test_a_new_run_does_not_find_what_an_earlier_one_left_in_its_folder(empty_folder, capsys):
    run = empty_folder / "run"
    checkpoint(run, age=10)
    begin_run(run)
    assert not has_checkpoint(run)
    with pytest.raises(UserError, match=r"^ckpt: no whole checkpoint"):
        find_checkpoint({"ckpt": "last", "run_dir": str(run)})
    assert "belongs to an earlier run in this folder" in capsys.readouterr().err
    checkpoint(run, age=-4e9)
    assert has_checkpoint(run)


def test_further_processes_take_the_first_ones_checkpoint(empty_folder, monkeypatch):
    first = checkpoint(empty_folder / "run", age=10)
    config = {"ckpt": "last", "run_dir": str(empty_folder / "run")}
    assert find_checkpoint(config) == first
    checkpoint(empty_folder / "run", age=5, name="newer.ckpt")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert find_checkpoint(config) == first


@pytest.mark.parametrize("ckpt", ["last", "there/is/none.ckpt"])
def test_a_checkpoint_that_is_not_there_is_an_error(ckpt):
    with pytest.raises(ValueError, match=r"^ckpt: "):
        find_checkpoint({"name": "ppo", "ckpt": ckpt})


def test_a_file_is_whole_or_the_former_one(empty_folder, monkeypatch):
    run_folder.write_summary(empty_folder, {"a": 1})

    def killed(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(durable.os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        run_folder.write_summary(empty_folder, {"a": 2})
    assert (empty_folder / "summary.json").read_text() == '{\n  "a": 1\n}\n'


def test_a_new_run_in_an_old_folder_does_not_show_the_old_summary(empty_folder):
    run_folder.write_summary(empty_folder, {"a": 1})
    run_folder.write_config(empty_folder, {"name": "x"})
    assert not (empty_folder / "summary.json").exists()


def test_checkpoints_in_another_folder_are_found_for_their_run_alone(empty_folder):
    shared = empty_folder / "scratch"
    shared.mkdir()
    for name in ("run", "other"):
        (empty_folder / name).mkdir()
        (empty_folder / name / "config.yaml").write_text("{}")
        DurableCheckpointIO(empty_folder / name).save_checkpoint({"epoch": 1}, shared / f"{name}.ckpt")
    assert run_folder.run_of_checkpoint(shared / "run.ckpt") == empty_folder / "run"
    config = {"ckpt": "last", "run_dir": "run", "callbacks": {"checkpoint": {"dirpath": str(shared)}, "off": None}}
    assert find_checkpoint(config) == shared / "run.ckpt"
