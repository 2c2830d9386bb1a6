from __future__ import annotations

import os

import pytest

from rlhf_lightning.commands import run_folder
from rlhf_lightning.commands.run_folder import choose_run_dir, find_checkpoint, first_process, forget_run_dir


@pytest.fixture(autouse=True)
def no_shared_folder(monkeypatch, empty_folder):
    monkeypatch.delenv("RLHF_LIGHTNING_RUN_DIR", raising=False)
    yield
    forget_run_dir()


def checkpoint(folder, age: float):
    file = folder / "checkpoints" / "last.ckpt"
    file.parent.mkdir(parents=True)
    (folder / "config.yaml").write_text("{}")
    file.write_bytes(b"x")
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


def test_the_last_checkpoint_is_the_newest_of_the_experiment(empty_folder):
    checkpoint(empty_folder / "outputs" / "ppo" / "a", age=10)
    newest = checkpoint(empty_folder / "outputs" / "ppo" / "b", age=5)
    assert find_checkpoint({"name": "ppo", "ckpt": "last"}, None).resolve() == newest


def test_a_resumed_run_goes_on_in_its_own_folder(empty_folder):
    file = checkpoint(empty_folder / "outputs" / "ppo" / "a", age=10)
    assert choose_run_dir({"name": "ppo", "ckpt": str(file)}) == empty_folder / "outputs" / "ppo" / "a"
    forget_run_dir()
    assert choose_run_dir({"name": "ppo", "ckpt": "last"}).resolve() == empty_folder / "outputs" / "ppo" / "a"


@pytest.mark.parametrize("ckpt", ["last", "there/is/none.ckpt"])
def test_a_checkpoint_that_is_not_there_is_an_error(ckpt):
    with pytest.raises(ValueError, match=r"^ckpt: "):
        find_checkpoint({"name": "ppo", "ckpt": ckpt}, None)


def test_a_file_is_whole_or_the_former_one(empty_folder, monkeypatch):
    run_folder.write_summary(empty_folder, {"a": 1})

    def killed(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(run_folder.os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        run_folder.write_summary(empty_folder, {"a": 2})
    assert (empty_folder / "summary.json").read_text() == '{\n  "a": 1\n}\n'


def test_a_new_run_in_an_old_folder_does_not_show_the_old_summary(empty_folder):
    run_folder.write_summary(empty_folder, {"a": 1})
    run_folder.write_config(empty_folder, {"name": "x"})
    assert not (empty_folder / "summary.json").exists()


@pytest.mark.parametrize(
    ("variables", "first"),
    [({}, True), ({"LOCAL_RANK": "1"}, False), ({"RANK": "4", "LOCAL_RANK": "0"}, False), ({"RANK": "0"}, True)],
)
def test_only_rank_0_writes(variables, first, monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert first_process() is first
