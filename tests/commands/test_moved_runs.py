"""A run folder that was copied, touched or restored continues as if nothing had happened."""

from __future__ import annotations

import importlib
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from rlhf_lightning.callbacks import DurableCheckpointIO, ResumableCheckpoint
from rlhf_lightning.commands import train
from rlhf_lightning.commands.composition import compose_config
from rlhf_lightning.errors import UserError
from rlhf_lightning.run_identity import read_started
from rlhf_lightning.runs.checkpoints import find_checkpoint
from rlhf_lightning.runs.resuming import check_same_run
from rlhf_lightning.runs.run_folder import begin_run, forget_run_dir, run_of_checkpoint, write_config
from rlhf_lightning.simulation import write_world

ROOT = Path(__file__).resolve().parents[2]
RUN = [
    *("experiment=sft_demo", "logger=none", "prepare=null", "callbacks.progress=null", "scheduler=constant"),
    *("+trainer.enable_progress_bar=false", "trainer.accelerator=cpu", "trainer.log_every_n_steps=2"),
    *("model.path=world/models/llama", "data.train=world/sft.jsonl", "data.val_fraction=0.2", "data.batch_size=8"),
    *("callbacks.checkpoint.monitor=val/loss", "callbacks.checkpoint.save_top_k=2"),
]


@pytest.fixture(autouse=True)
def forget() -> Any:
    yield
    forget_run_dir()


@pytest.fixture
def end_of(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    return importlib.import_module("kill_resume").end_of


def run(run_dir: str, epochs: int, *overrides: str) -> None:
    config = compose_config("train", [*RUN, f"run_dir={run_dir}", f"trainer.max_epochs={epochs}", *overrides])
    train.run(config)


@pytest.mark.filterwarnings("ignore")
def test_a_copy_whose_files_times_are_wrong_resumes_and_ends_bitwise_equal(
    empty_folder: Path, end_of: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    write_world("world", n_train_prompts=24, n_test_prompts=8, demonstrations_per_prompt=1)
    run("whole", 4)
    run("begun", 2)
    shutil.copytree("begun", "elsewhere/copy", copy_function=shutil.copyfile)
    shutil.rmtree("begun")
    for age, file in enumerate(sorted(Path("elsewhere/copy/checkpoints").iterdir())):
        os.utime(file, (1e9 + age, 1e9 + age))  # .started would be older or newer than everything
    os.utime("elsewhere/copy/checkpoints/.started", (4e9, 4e9))
    capsys.readouterr()
    run("elsewhere/copy", 4, "ckpt=last")
    assert "skipped" not in capsys.readouterr().err
    assert end_of(Path("elsewhere/copy")) == end_of(Path("whole"))
    kept = [
        sorted(path.name for path in Path(folder, "checkpoints").iterdir()) for folder in ("elsewhere/copy", "whole")
    ]
    assert kept[0] == kept[1]  # the best ones of both halves
    assert not Path("begun").exists()


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_the_best_checkpoints_of_a_copy_are_its_own(tmp_path: Path) -> None:
    begin_run(tmp_path / "run")
    names = ("best.ckpt", "second.ckpt", "last.ckpt")
    for name in names:
        DurableCheckpointIO(tmp_path / "run").save_checkpoint({}, tmp_path / "run/checkpoints" / name)
    best, second, last = (str(tmp_path / "run/checkpoints" / name) for name in names)
    state = {
        **ResumableCheckpoint(tmp_path / "run/checkpoints", save_top_k=2, monitor="val/loss").state_dict(),
        **{"best_model_path": best, "kth_best_model_path": second, "last_model_path": last},
        "best_k_models": {best: 1.0, second: 2.0},
    }
    begun = read_started(tmp_path / "run/checkpoints")
    assert begun is not None

    def loaded(folder: Path, run_id: str) -> ResumableCheckpoint:
        callback = ResumableCheckpoint(folder / "checkpoints", save_top_k=2, monitor="val/loss")
        callback.on_load_checkpoint(None, None, {"run_id": run_id})  # type: ignore[arg-type]
        callback.load_state_dict(state)
        return callback

    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    (tmp_path / "copy/checkpoints/second.ckpt").unlink()
    copy = loaded(tmp_path / "copy", begun.run_id)
    assert copy.best_k_models == {str(tmp_path / "copy/checkpoints/best.ckpt"): 1.0}
    assert (copy.best_model_path, copy.kth_best_model_path) == (str(tmp_path / "copy/checkpoints/best.ckpt"), "")
    assert loaded(tmp_path / "copy", "another run's").best_k_models == {}
    assert loaded(tmp_path / "run", begun.run_id).best_k_models == {best: 1.0, second: 2.0}


def test_checkpoints_beside_a_run_that_was_copied_with_it_are_of_the_copy(empty_folder: Path) -> None:
    (empty_folder / "here/run").mkdir(parents=True)
    (empty_folder / "here/run/config.yaml").write_text("{}")
    begin_run(empty_folder / "here/run")
    DurableCheckpointIO("here/run").save_checkpoint({"epoch": 1}, "here/scratch/last.ckpt")
    shutil.copytree("here", "there")
    copy = empty_folder / "there/scratch/last.ckpt"
    assert run_of_checkpoint(copy) == empty_folder / "there/run"
    config = {"ckpt": "last", "run_dir": "there/run", "callbacks": {"checkpoint": {"dirpath": "there/scratch"}}}
    assert find_checkpoint(config) == Path("there/scratch/last.ckpt")
    shutil.rmtree("here")
    assert find_checkpoint(config) == Path("there/scratch/last.ckpt")
    shutil.move(copy, empty_folder / "far.ckpt")
    shutil.move(f"{copy}.manifest.json", empty_folder / "far.ckpt.manifest.json")
    (empty_folder / "here").mkdir()
    shutil.move("there/run", "here/run")
    assert run_of_checkpoint(empty_folder / "far.ckpt") == empty_folder / "here/run"  # by its original path


def test_checkpoints_elsewhere_are_not_of_a_second_run_in_the_folder(empty_folder: Path) -> None:
    config = {"ckpt": "last", "run_dir": "run", "callbacks": {"checkpoint": {"dirpath": "scratch"}}}
    (empty_folder / "run").mkdir()
    (empty_folder / "run/config.yaml").write_text("{}")
    for name in ("b.ckpt", "a.ckpt"):
        begin_run(Path("run"))
        with pytest.raises(UserError, match="no whole checkpoint"):
            find_checkpoint(config)
        DurableCheckpointIO("run").save_checkpoint({"epoch": 1}, f"scratch/{name}")
        assert find_checkpoint(config) == Path("scratch", name)
    assert run_of_checkpoint(Path("scratch/b.ckpt")) is None


def test_the_newest_of_several_runs_is_the_one_that_was_saved_last(empty_folder: Path) -> None:
    for name in ("b", "a"):
        folder = Path("outputs/sft") / name
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text("{}")
        begin_run(folder)
        DurableCheckpointIO(folder).save_checkpoint({"epoch": 1}, folder / "checkpoints/last.ckpt")
    os.utime("outputs/sft/b/checkpoints/last.ckpt", (4e9, 4e9))
    assert find_checkpoint({"name": "sft", "ckpt": "last"}) == Path("outputs/sft/a/checkpoints/last.ckpt")


@pytest.mark.parametrize(
    ("path", "refused"),
    [
        ("there/sft", None),
        ("there/sft/model", "model.path: changed"),
        ("here/sft", None),  # unchanged: nothing differs
        ("outside/sft", "model.path: changed"),
    ],
)
def test_a_stage_that_was_copied_with_the_one_before_it_goes_on(
    path: str, refused: str | None, empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = compose_config("train", ["experiment=ppo_demo", "run_dir=here/ppo", "model.path=here/sft"])
    write_config(empty_folder / "there/ppo", begun)
    config = compose_config("train", ["experiment=ppo_demo", "run_dir=there/ppo", f"model.path={path}"])
    checkpoint = empty_folder / "there/ppo/checkpoints/last.ckpt"
    if refused is None:
        check_same_run(config, checkpoint)
        return
    with pytest.raises(UserError, match=refused):
        check_same_run(config, checkpoint)
