"""A resumed run continues in its own MLflow run if that can be found, and otherwise begins a complete new one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from rlhf_lightning.commands import pipeline as pipeline_command
from rlhf_lightning.commands import train
from rlhf_lightning.commands.build import _build_logger
from rlhf_lightning.commands.composition import compose_config
from rlhf_lightning.durable import save_with_manifest
from rlhf_lightning.errors import Terminated
from rlhf_lightning.runs.pipeline import Pipeline
from rlhf_lightning.runs.run import Run
from rlhf_lightning.runs.run_folder import write_config
from rlhf_lightning.tracking.mlflow_runs import FILE, keep_run, live_run
from rlhf_lightning.tracking.pipeline_tracking import PipelineTracking
from rlhf_lightning.tracking.run_tracking import RunTracking
from tests.commands.runs import write_model

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Make one store for all tests, because making one takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


@pytest.fixture(scope="module")
def other_store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('other')}/mlflow.db"


def pipeline_of(tracking: PipelineTracking | None) -> Run | None:
    """Return a pipeline whose run in the store is this one."""
    if tracking is None:
        return None
    pipeline = Run({}, tracking.folder)
    pipeline.tracking = tracking
    return pipeline


def tracked(store: str, experiment: str, seed: int = 0, goes_on: bool = False) -> PipelineTracking:
    """Return the run in a store of the pipeline in `pipe`."""
    logger = {"tracking_uri": store, "experiment_name": experiment}
    config = {"name": "pipe", "logger": logger, "from": "sft" if goes_on else None, "seed": seed}
    return PipelineTracking(Pipeline(config, Path("pipe"), []))


class Folder:
    """Runs in the working folder that log a loss and a checkpoint per step, in a separate MLflow experiment."""

    def __init__(self, store: str, experiment: str) -> None:
        self.store, self.experiment = store, experiment

    def run(
        self,
        last: int,
        *overrides: str,
        run_dir: str = "run",
        checkpoint: str | None = None,
        store: str | None = None,
        parent: PipelineTracking | None = None,
    ) -> str:
        """Run the steps up to `last`, after those of the checkpoint, and return the run's id."""
        logger = [f"logger.tracking_uri={store or self.store}", f"logger.experiment_name={self.experiment}"]
        config = compose_config("train", ["experiment=sft_demo", "logger.synchronous=true", *logger, *overrides])
        file, folder = Path(checkpoint) if checkpoint else None, Path(run_dir)
        first = json.loads(file.read_text())["step"] if file else 0
        write_config(folder, config)
        run = Run(config, folder, pipeline_of(parent))
        run.checkpoint = file
        opened = _build_logger(run)
        tracking = RunTracking(run, [opened])
        tracking.open()
        self.status = opened.experiment.get_run(opened.run_id).info.status
        with (folder / "metrics.jsonl").open("a") as lines:
            for step in range(first + 1, last + 1):
                opened.log_metrics({"train/loss": step / 10}, step)
                lines.write(json.dumps({"step": step, "epoch": 0, "train/loss": step / 10}) + "\n")
        (folder / "checkpoints").mkdir(exist_ok=True)
        content = json.dumps({"step": last}).encode()
        save_with_manifest(folder / "checkpoints/last.ckpt", lambda file: file.write(content), global_step=last)
        opened.finalize("success")
        tracking.send_files()
        tracking.finish()
        return str(opened.run_id)

    def runs(self, store: str | None = None) -> list[Any]:
        client = MlflowClient(store or self.store)
        experiment = client.get_experiment_by_name(self.experiment)
        return client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"])

    def losses(self, run_id: str, store: str | None = None) -> list[tuple[int, float]]:
        history = MlflowClient(store or self.store).get_metric_history(run_id, "train/loss")
        return sorted((point.step, point.value) for point in history)


@pytest.fixture
def folder(store: str, empty_folder: Path, request: pytest.FixtureRequest) -> Folder:
    return Folder(store, request.node.name)


LAST = "run/checkpoints/last.ckpt"
ALL = [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4)]


def test_a_resumed_run_goes_on_in_its_own(folder: Folder) -> None:
    first = folder.run(2)
    before = folder.runs()[0].info
    assert folder.run(4, checkpoint=LAST) == first
    assert folder.status == "RUNNING"
    (found,) = folder.runs()
    assert folder.losses(first) == ALL
    assert found.info.status == "FINISHED"
    assert found.info.end_time > before.end_time


def test_parameters_are_logged_once_and_a_changed_one_is_a_tag(folder: Folder) -> None:
    folder.run(2, "optimizer.lr=0.5")
    folder.run(4, "optimizer.lr=0.1", "ckpt=last", checkpoint=LAST)
    folder.run(6, "optimizer.lr=0.1", "ckpt=last", checkpoint=LAST)
    (found,) = folder.runs()
    assert found.data.params["optimizer.lr"] == "0.5"
    assert {tag: value for tag, value in found.data.tags.items() if tag.startswith("changed.")} == {
        "changed.optimizer.lr": "0.1"
    }


def test_a_new_run_in_the_same_folder_is_a_new_one(folder: Folder) -> None:
    assert folder.run(2) != folder.run(2)
    assert folder.run(4, checkpoint=LAST) == folder.runs()[-1].info.run_id


def test_where_its_run_was_deleted_a_new_one_holds_the_earlier_steps_too(folder: Folder) -> None:
    first = folder.run(2)
    MlflowClient(folder.store).delete_run(first)
    second = folder.run(4, checkpoint=LAST)
    assert second != first
    assert folder.losses(second) == ALL
    assert folder.run(5, checkpoint=LAST) == second


def test_in_another_store_a_new_one_holds_the_earlier_steps_and_each_store_keeps_its_own(
    folder: Folder, other_store: str
) -> None:
    first = folder.run(2)
    second = folder.run(4, checkpoint=LAST, store=other_store)
    assert folder.losses(second, other_store) == ALL
    assert folder.run(5, checkpoint=LAST) == first
    assert folder.run(6, checkpoint=LAST, store=other_store) == second


def test_a_copied_folder_gets_a_whole_run_of_its_own_and_the_original_keeps_its(folder: Folder) -> None:
    first = folder.run(2)
    shutil.copytree("run", "copy")
    last = "copy/checkpoints/last.ckpt"
    second = folder.run(4, run_dir="copy", checkpoint=last)
    assert folder.losses(second) == ALL
    assert folder.run(5, run_dir="copy", checkpoint=last) == second
    assert folder.run(3, checkpoint=LAST) == first
    assert folder.losses(first) == ALL[:3]


def test_a_folder_that_was_moved_keeps_its_run(folder: Folder) -> None:
    first = folder.run(2)
    shutil.move("run", "moved")
    assert folder.run(4, run_dir="moved", checkpoint="moved/checkpoints/last.ckpt") == first
    assert folder.runs()[0].data.tags["run_dir"] == "moved"


def test_a_checkpoint_of_another_folder_brings_its_history(folder: Folder) -> None:
    first = folder.run(2)
    shutil.copy(LAST, "early.ckpt")
    shutil.copy(f"{LAST}.manifest.json", "run/checkpoints/early.ckpt.manifest.json")
    shutil.move("early.ckpt", "run/checkpoints/early.ckpt")
    folder.run(3, checkpoint=LAST)
    second = folder.run(4, run_dir="other", checkpoint="run/checkpoints/early.ckpt")
    assert second != first
    assert folder.losses(second) == ALL  # step 3 is this run's own


def test_steps_that_are_done_again_are_not_logged_again(folder: Folder) -> None:
    first = folder.run(2)
    for file in (LAST, f"{LAST}.manifest.json"):
        shutil.copy(file, file.replace("last", "early"))
    folder.run(4, checkpoint=LAST)
    assert folder.run(5, checkpoint="run/checkpoints/early.ckpt") == first  # as after a kill
    assert folder.losses(first) == [*ALL, (5, 0.5)]


def test_what_a_killed_run_had_not_sent_is_sent_at_the_end_of_the_resumed_one(folder: Folder) -> None:
    first = folder.run(2)
    with Path("run/metrics.jsonl").open("a") as lines:
        lines.write(json.dumps({"step": 0, "epoch": 0, "train/loss": 0.0}) + "\n")
    folder.run(4, checkpoint=LAST)
    assert folder.losses(first) == [(0, 0.0), *ALL]


def test_a_run_that_fails_or_is_stopped_ends_in_its_store(folder: Folder) -> None:
    own = [f"logger.tracking_uri={folder.store}", f"logger.experiment_name={folder.experiment}"]
    config = compose_config("train", ["experiment=sft_demo", *own])

    run = Run(config, Path("run"))

    def fails(logger: Any, error: BaseException) -> None:
        tracking = RunTracking(run, [logger])
        with tracking.to_the_end():
            tracking.open()
            raise error

    for error, status in ((RuntimeError("x"), "FAILED"), (Terminated(), "KILLED")):
        logger = _build_logger(run)
        with pytest.raises(type(error)):
            fails(logger, error)
        assert MlflowClient(folder.store).get_run(logger.opened).info.status == status


def test_a_new_run_in_a_folder_whose_store_is_away_has_nothing_of_the_former_one(folder: Folder) -> None:
    folder.run(2)
    store = f"sqlite:///{Path('file').absolute()}/mlflow.db"
    Path("file").touch()  # so that no store can be created there
    config = compose_config("train", ["experiment=sft_demo", f"logger.tracking_uri={store}"])
    run = Run(config, Path("run"))
    logger = _build_logger(run)
    tracking = RunTracking(run, [logger])
    with tracking.to_the_end():
        tracking.open()
        assert logger.opened is None
    assert not Path("run", FILE).exists() or folder.store not in Path("run", FILE).read_text()


def test_a_run_that_the_user_names_is_taken(folder: Folder) -> None:
    first = folder.run(2)
    assert folder.run(4, f"+logger.run_id={first}", run_dir="other", checkpoint=LAST) == first


def test_other_processes_leave_the_store_alone(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.run(2)
    config = compose_config("train", ["experiment=sft_demo", f"logger.tracking_uri={folder.store}"])
    monkeypatch.setenv("NODE_RANK", "1")
    _build_logger(Run(config, Path("another")))
    assert MlflowClient(folder.store).get_experiment_by_name("rlhf-lightning") is None
    assert not Path("another", FILE).exists()


def test_a_stage_that_is_resumed_keeps_its_run_under_the_pipelines(folder: Folder) -> None:
    name = folder.experiment
    former = tracked(folder.store, name)
    former.open()
    stage = folder.run(2, run_dir="pipe/sft", parent=former)
    former.fail()
    again = tracked(folder.store, name, seed=1, goes_on=True)
    again.open()
    assert again.run_id == former.run_id
    assert again.client.get_run(again.run_id).info.status == "RUNNING"
    last = "pipe/sft/checkpoints/last.ckpt"
    assert folder.run(4, run_dir="pipe/sft", checkpoint=last, parent=again) == stage
    again.finish({"sft.loss": 1.0}, [])
    changed = tracked(folder.store, name, seed=2, goes_on=True)
    changed.open()
    changed.finish({"sft.loss": 1.0}, [])
    parent = again.client.get_run(again.run_id)
    assert (parent.info.status, parent.data.params["seed"], parent.data.tags["changed.seed"]) == ("FINISHED", "1", "2")

    again.client.delete_run(again.run_id)
    new = tracked(folder.store, name, goes_on=True)
    new.open()
    assert folder.run(5, run_dir="pipe/sft", checkpoint=last, parent=new) == stage
    assert new.client.get_run(stage).data.tags["mlflow.parentRunId"] == new.run_id != former.run_id


def test_a_pipeline_that_begins_with_a_later_stage_goes_on_in_its_run(folder: Folder) -> None:
    logger = compose_config("pipeline", ["pipeline=demo", f"logger.tracking_uri={folder.store}"])["logger"]

    def begun(first_stage: str | None) -> PipelineTracking:
        pipeline = Pipeline({"logger": logger, "name": "demo", "from": first_stage}, Path("pipe"), [])
        with pipeline_command.tracked(pipeline) as tracking:
            assert tracking is not None
            tracking.open()
        return tracking

    first = begun(None)
    assert live_run(Path("pipe"), MlflowClient(folder.store), folder.store) == first.run_id
    assert begun("ppo").run_id == first.run_id
    assert begun(None).run_id != first.run_id


def test_rlhf_train_goes_on_in_the_run_of_the_checkpoints_folder(store: str, empty_folder: Path) -> None:
    write_model(empty_folder / "base")
    rows = [{"prompt": "a b", "completion": "c d e"[: 1 + 2 * (i % 3)]} for i in range(4)]
    (empty_folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = ["experiment=sft", "scheduler=constant", "model.path=base", "data.train=rows.jsonl", "data.batch_size=2"]
    settings += ["data.val_fraction=0", "trainer.accelerator=cpu", "trainer.log_every_n_steps=1"]
    settings += ["callbacks.progress=null", "callbacks.instruments=null", f"logger.tracking_uri={store}"]
    settings += ["logger.experiment_name=trained"]
    train.run(compose_config("train", [*settings, "run_dir=run"]))
    resumed = compose_config("train", [*settings, f"ckpt={LAST}", "trainer.max_epochs=2", "optimizer.lr=0.1"])
    assert train.run(resumed).folder == empty_folder / "run"
    client = MlflowClient(store)
    (found,) = client.search_runs([client.get_experiment_by_name("trained").experiment_id])
    assert [point.step for point in client.get_metric_history(found.info.run_id, "train/loss")] == [1, 2, 3, 4]
    assert found.info.status == "FINISHED"


def test_the_password_of_a_store_is_not_kept(tmp_path: Path) -> None:
    keep_run(tmp_path, "https://ana:hunter2@host/", "some-id")
    assert "hunter2" not in (tmp_path / FILE).read_text()
