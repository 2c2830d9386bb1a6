"""A run takes over its folder once everything is loaded, and only one run at a time uses a folder."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest

from rlhf_lightning.commands import train
from rlhf_lightning.commands.composition import compose_config
from rlhf_lightning.errors import UserError
from rlhf_lightning.runs.folder_lock import LOCK, FolderLock, check_run_dir
from tests.commands.runs import write_model

pytestmark = pytest.mark.filterwarnings("ignore")
RUN = ["experiment=sft", "model.path=model", "data.train=rows.jsonl", "data.val_fraction=0", "scheduler=constant"]
RUN += ["logger=none", "run_dir=run", "data.batch_size=2", "callbacks.instruments=null", "callbacks.progress=null"]


@pytest.fixture
def inputs(empty_folder: Path) -> Path:
    write_model(Path("model"))
    Path("rows.jsonl").write_text(json.dumps({"prompt": "a b", "completion": " c"}) * 1 + "\n")
    return empty_folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    ("words", "breaks"),
    [
        (["model.path=model"], lambda: Path("model/model.safetensors").write_text("broken")),
        (["model.path=model"], lambda: Path("model/tokenizer.json").write_text("broken")),
        ([], lambda: Path("rows.jsonl").write_text("broken\n")),
        (["trainer.strategy=nope"], lambda: None),
        (["optimizer.lr=fast"], lambda: None),
    ],
)
def test_a_failed_start_leaves_a_finished_run_as_it_was(words, breaks, inputs):
    train.train(compose_config("train", RUN))
    before = contents(Path("run"))
    assert "run/summary.json" in before
    breaks()
    with pytest.raises((UserError, ValueError)):
        train.train(compose_config("train", [*RUN, *words]))
    assert contents(Path("run")) == before


def _hold(folder: Path, held: multiprocessing.Event, done: multiprocessing.Event) -> None:
    with FolderLock(folder) as lock:
        lock.take()
        held.set()
        done.wait(60)


def test_a_second_run_in_a_folder_is_refused_while_the_first_goes_on(tmp_path):
    context = multiprocessing.get_context("spawn")
    held, done = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(tmp_path, held, done))
    process.start()
    try:
        assert held.wait(60)
        with pytest.raises(UserError, match=rf"^run_dir: another run is in progress in .*\(process {process.pid}\)"):
            FolderLock(tmp_path).check()
    finally:
        done.set()
        process.join(60)
    FolderLock(tmp_path).check()
    assert not (tmp_path / LOCK).exists()


def test_a_lock_of_a_killed_run_does_not_hold(tmp_path):
    (tmp_path / LOCK).write_text("123\n")
    FolderLock(tmp_path).check()


def test_a_folder_that_cannot_be_used_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match=r"^run_dir: .*file is a file"):
            check_run_dir(folder)
    check_run_dir(tmp_path / "new" / "deep")
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr("tempfile.mkdtemp", lambda **_: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    with pytest.raises(UserError, match=r"^run_dir: .*cannot be written \(permission denied\)"):
        check_run_dir(tmp_path)


def test_a_reward_that_fails_in_the_first_rollout_leaves_every_folder_as_it_was(inputs):
    train.train(compose_config("train", RUN))
    before = contents(Path("run"))
    Path("prompts.jsonl").write_text(json.dumps({"prompt": "a b"}) + "\n")
    words = ["experiment=ppo", "model.path=model", "data.train=prompts.jsonl", "logger=none", "rollout.batch_size=2"]
    words += ["reward.function=failing_reward.fn", "rollout.max_new_tokens=2", "algorithm.num_minibatches=1"]
    Path("failing_reward.py").write_text("def fn(prompts, responses, **columns): return [float('nan')] * 2\n")
    for folder in ("run", "new"):
        with pytest.raises(UserError, match=r"^reward\.function: .*score 0 is nan.*; its prompt: prompts.jsonl, row 1"):
            train.train(compose_config("train", [*words, f"run_dir={folder}"]))
    assert contents(Path("run")) == before
    assert not Path("new").exists()
