"""The printed advice on how to continue is true of this run, whatever an earlier one left in its folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf_lightning.runs.pipeline import Pipeline, StageConfig
from rlhf_lightning.runs.run import AGAIN, Run

NOTHING_YET = f"there is no checkpoint yet; {AGAIN}"


def write_checkpoint(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(b"weights")


def run_of(ckpt: str | None, folder: Path | None, begun: bool, saved: bool = False) -> Run:
    run = Run({"ckpt": ckpt}, folder)
    run.begun, run.saved = begun, saved
    return run


def test_before_a_run_has_begun_a_former_ones_checkpoint_does_not_count(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoints/last.ckpt")
    assert Run({}).advice() == AGAIN
    assert Run({"ckpt": "last"}).advice() == AGAIN
    assert run_of(None, tmp_path, begun=False).advice() == AGAIN
    assert run_of(None, tmp_path / "new", begun=True).advice() == NOTHING_YET


def test_a_run_goes_on_from_what_it_has_saved_or_from_where_it_began(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoints/last.ckpt")
    go_on = "go on with the same command with ckpt="
    assert run_of(None, tmp_path, begun=True, saved=True).advice() == f"{go_on}last run_dir={tmp_path}"
    named = str(tmp_path / "checkpoints/first.ckpt")
    assert run_of(named, tmp_path, begun=True, saved=True).advice() == f"{go_on}last run_dir={tmp_path}"
    for begun in (False, True):
        assert run_of(named, tmp_path, begun).advice() == f"{go_on}{named} run_dir={tmp_path}"
        assert run_of("last", tmp_path, begun).advice() == f"{go_on}last run_dir={tmp_path}"


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    folder = tmp_path / "my runs"
    stages = [StageConfig(name, {"run_dir": str(folder / name), "ckpt": None}) for name in ("sft", "ppo")]
    return Pipeline({}, folder, stages)


def begin(pipeline: Pipeline) -> Run:
    """Return the next stage, which has taken over its folder."""
    run = pipeline.begin_stage()
    assert pipeline.advice() == AGAIN or "from=ppo" in pipeline.advice()
    run.find_place()
    run.begun = True
    return run


def test_a_pipeline_goes_on_with_the_stage_that_it_was_in(pipeline: Pipeline) -> None:
    go_on, folder = "go on with the same command with from=", f"'run_dir=\"{pipeline.folder}\"'"
    assert pipeline.advice() == AGAIN
    begin(pipeline)
    assert pipeline.advice() == NOTHING_YET
    write_checkpoint(pipeline.folder / "sft/checkpoints/last.ckpt")
    assert pipeline.advice() == f"{go_on}sft stages.sft.ckpt=last {folder}"
    pipeline.end_stage()
    assert pipeline.advice() == f"{go_on}ppo {folder}"
    begin(pipeline)
    assert pipeline.advice() == f"{go_on}ppo {folder}"
    write_checkpoint(pipeline.folder / "ppo/checkpoints/last.ckpt")
    assert pipeline.advice() == f"{go_on}ppo stages.ppo.ckpt=last {folder}"
    pipeline.end_stage()
    assert pipeline.advice() == f"{go_on}ppo stages.ppo.ckpt=last {folder}"  # in the evaluation
