"""What is said of how to go on is true of this run, whatever a former one has left in its folder."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from rlhf_lightning.commands.going_on import AGAIN, Place, Progress
from rlhf_lightning.commands.stages import StageConfig

NOTHING_YET = f"there is no checkpoint yet; {AGAIN}"


def write_checkpoint(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(b"weights")


def start(begun: bool, saved: bool = False) -> SimpleNamespace:
    return SimpleNamespace(begun=begun, saved=saved)


def test_before_a_run_has_begun_a_former_ones_checkpoint_does_not_count(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoints/last.ckpt")
    assert Place().advice() == AGAIN
    assert Place(None, tmp_path, start(False)).advice() == AGAIN
    assert Place(None, tmp_path / "new", start(True)).advice() == NOTHING_YET


def test_a_run_goes_on_from_what_it_has_saved_or_from_where_it_began(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoints/last.ckpt")
    go_on = "go on with the same command with ckpt="
    assert Place(None, tmp_path, start(True, True)).advice() == f"{go_on}last run_dir={tmp_path}"
    named = str(tmp_path / "checkpoints/first.ckpt")
    assert Place(named, tmp_path, start(True, True)).advice() == f"{go_on}last run_dir={tmp_path}"
    for begun in (False, True):
        assert Place(named, tmp_path, start(begun)).advice() == f"{go_on}{named} run_dir={tmp_path}"
        assert Place("last", tmp_path, start(begun)).advice() == f"{go_on}last run_dir={tmp_path}"


@pytest.fixture
def progress(tmp_path: Path) -> Progress:
    run_dir = tmp_path / "my runs"
    stages = [StageConfig(name, {"run_dir": str(run_dir / name), "ckpt": None}, None, None) for name in ("sft", "ppo")]
    return Progress(run_dir, stages)


def test_a_pipeline_goes_on_with_the_stage_that_it_was_in(progress: Progress) -> None:
    go_on, folder = "go on with the same command with from=", f"'run_dir=\"{progress.run_dir}\"'"
    assert progress.advice() == AGAIN
    place = progress.begin()
    assert progress.advice() == AGAIN
    place.folder, place.start = progress.run_dir / "sft", start(True)
    assert progress.advice() == NOTHING_YET
    write_checkpoint(progress.run_dir / "sft/checkpoints/last.ckpt")
    assert progress.advice() == f"{go_on}sft stages.sft.ckpt=last {folder}"
    progress.end()
    assert progress.advice() == f"{go_on}ppo {folder}"
    place = progress.begin()
    place.folder, place.start = progress.run_dir / "ppo", start(True)
    assert progress.advice() == f"{go_on}ppo {folder}"
    write_checkpoint(progress.run_dir / "ppo/checkpoints/last.ckpt")
    assert progress.advice() == f"{go_on}ppo stages.ppo.ckpt=last {folder}"
    progress.end()
    assert progress.advice() == f"{go_on}ppo stages.ppo.ckpt=last {folder}"  # in the evaluation
