"""Planted links and hard links in a run folder: nothing outside it is written, sent or given away."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rlhf_lightning.callbacks.lines import keep_lines
from rlhf_lightning.commands.export import _copy_adapter
from rlhf_lightning.errors import UserError
from rlhf_lightning.runs.after_training import export_model
from rlhf_lightning.runs.folder_lock import LOCK, FolderLock, check_run_dir
from rlhf_lightning.runs.run import Run
from rlhf_lightning.tracking.contents import files_of


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "file").write_text("as it was\n")
    (tmp_path / "run").mkdir()
    return tmp_path / "theirs"


@pytest.mark.parametrize("name", ["checkpoints", "model"])
def test_a_run_does_not_write_through_a_link(name, theirs, tmp_path):
    (tmp_path / "run" / name).symlink_to(theirs)
    with pytest.raises(UserError, match=rf"run_dir: .*{name} is a link"):
        check_run_dir(tmp_path / "run")


def test_the_run_folder_itself_may_be_one(theirs, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "run")
    check_run_dir(tmp_path / "link")


def write_model(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").touch()


@pytest.mark.parametrize("planted", [".model.new", ".model.former", "model"])
def test_a_model_is_exported_beside_a_planted_link(planted, theirs, tmp_path):
    (tmp_path / "run" / planted).symlink_to(theirs)
    for _ in range(2):
        export_model(write_model, tmp_path / "run")
    assert [path.name for path in theirs.iterdir()] == ["file"]
    assert (tmp_path / "run" / "model" / "config.json").is_file()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["model"]


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="no links there")
@pytest.mark.parametrize("plant", [os.link, os.symlink])
def test_the_lock_and_the_metrics_leave_what_a_planted_name_leads_to(plant, theirs, tmp_path):
    for name in (LOCK, "metrics.jsonl"):
        plant(theirs / "file", tmp_path / "run" / name)
    with FolderLock(tmp_path / "run") as lock:
        lock.take()
    (theirs / "rows").write_text('{"step": 1}\n')
    (tmp_path / "run" / "metrics.jsonl").unlink()
    plant(theirs / "rows", tmp_path / "run" / "metrics.jsonl")
    assert keep_lines(tmp_path / "run" / "metrics.jsonl", lambda row: True) == 1
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    assert (theirs / "rows").read_text() == '{"step": 1}\n'
    assert (theirs / "file").read_text() == "as it was\n"


class Client:
    def __init__(self) -> None:
        self.sent: list[str] = []

    def log_artifact(self, run_id: str, path: str, place: str | None) -> None:
        self.sent.append(Path(path).name)


def send(client: Client, run: Path) -> None:
    for _, _, attach in files_of(run):
        attach(client, "1")


def test_nothing_that_a_link_leads_to_is_sent_or_exported(theirs, tmp_path):
    run = tmp_path / "run"
    (run / "model").mkdir()
    (run / "report.html").touch()
    (run / "stolen.png").symlink_to(theirs / "file")
    (run / "model" / "adapter_config.json").write_text('{"base_model_name_or_path": "gpt2"}')
    client = Client()
    send(client, run)
    assert client.sent == ["report.html", "adapter_config.json"]
    (run / "model" / "stolen.txt").symlink_to(theirs / "file")
    client = Client()
    send(client, run)
    assert client.sent == ["report.html"]
    _copy_adapter(Run({}, run), tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["adapter_config.json"]
