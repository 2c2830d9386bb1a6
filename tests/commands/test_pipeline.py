from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlhf_lightning.commands import pipeline as command
from rlhf_lightning.commands.composition import compose_config
from rlhf_lightning.commands.stages import compose_stages
from rlhf_lightning.config.evaluation_checks import policy_stages
from rlhf_lightning.errors import UserError
from rlhf_lightning.runs.pipeline import Pipeline, stage_metrics
from rlhf_lightning.runs.run import Run
from rlhf_lightning.runs.run_folder import write_config
from tests.commands.runs import write_model


def composed(*overrides: str, folder: Path = Path("there")) -> Pipeline:
    pipeline = command.compose_pipeline(["pipeline=demo", f"run_dir={folder}", *overrides])
    command.check_pipeline(pipeline)
    return pipeline


def start(*overrides: str) -> None:
    command.run_pipeline(composed(*overrides))


def test_a_stage_begins_from_the_run_folders_of_earlier_ones(empty_folder):
    stages = composed().to_run
    ppo = next(stage for stage in stages if stage.name == "ppo").config
    assert ppo["model"]["path"] == "there/sft"
    assert ppo["reward"]["model"] == "there/reward"
    assert ppo["run_dir"] == "there/ppo"


def test_all_stages_have_the_pipelines_seed_world_and_folder(empty_folder):
    stages = composed("seed=7").to_run
    assert {stage.config["seed"] for stage in stages} == {7}
    assert {stage.config["prepare"]["seed"] for stage in stages} == {7}
    assert {stage.config["prepare"]["folder"] for stage in stages} == {"there/world"}
    assert stages[0].config["model"]["path"] == "there/world/models/llama"


def test_any_key_or_group_of_a_stage_can_be_set(empty_folder):
    stages = composed(
        "stages.ppo.algorithm.kl.target=3", "stages.dpo.optimizer=sgd", "+stages.sft.trainer.plugins=1"
    ).to_run
    configs = {stage.name: stage.config for stage in stages}
    assert configs["ppo"]["algorithm"]["kl"]["target"] == 3
    assert configs["dpo"]["optimizer"]["_target_"] == "torch.optim.SGD"
    assert configs["sft"]["trainer"]["plugins"] == 1


def test_paths_with_spaces_and_quotes_reach_the_stages(empty_folder):
    folder = Path("a b's, {c}")
    pipeline = compose_config("pipeline", ["pipeline=demo"])
    assert compose_stages(pipeline, folder, {})[1].config["model"]["path"] == str(folder / "sft")


def test_the_logger_is_set_once_for_all_stages_or_for_one(empty_folder):
    stages = composed("logger.tracking_uri=sqlite:///mine.db", "stages.dpo.logger=none").to_run
    loggers = {stage.name: stage.config["logger"] for stage in stages}
    assert loggers["ppo"]["tracking_uri"] == "sqlite:///mine.db"
    assert loggers["dpo"] == {}


def test_a_stage_can_be_taken_out(empty_folder):
    stages = composed("~stages.dpo").to_run
    assert [stage.name for stage in stages] == ["sft", "reward", "ppo"]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("stages.pp.seed=1", "stages.pp: no such stage; allowed: sft, reward, ppo, dpo; did you mean ppo?"),
        ("stages.sft.model_from=ppo", 'stages.sft.model_from: found "ppo"; must be an earlier stage'),
        ("from=rewrd", 'from: found "rewrd"; must be a stage (sft, reward, ppo, dpo); did you mean reward?'),
        ("from=ppo", "from: stage sft has not ended in there (no summary.json); start with from=sft"),
        ("evaluation.baseline=reward", 'evaluation.baseline: found "reward"; must be a stage (sft, ppo, dpo)'),
        ("evaluation.proxy=rm", 'evaluation.proxy: found "rm"'),
        ("stages.ppo.rollout.batch_size=3", "stages.ppo.rollout.batch_size: found 3; must be a multiple of"),
        ("stages.dpo.data.train=nowhere.jsonl", "stages.dpo.data.train: nowhere.jsonl does not exist"),
    ],
)
def test_everything_is_checked_before_the_first_stage(override, expected, empty_folder):
    with pytest.raises(UserError) as error:
        composed(override)
    assert expected in str(error.value)


@pytest.fixture
def recorded(monkeypatch):
    """Let stages only record that they ran, without an evaluation."""
    ran: list[str] = []

    def carry_out(run: Run) -> None:
        ran.append(run.name)
        run.pipeline.begin()
        folder = Path(run.config["run_dir"])
        folder.mkdir(parents=True, exist_ok=True)
        summary = {"val/accuracy": 0.8, "objective/kl": 2.5, "kl/coef": 0.2, "wall_seconds": 1.0, "cpu_seconds": 0.5}
        write_config(folder, run.config)
        (folder / "summary.json").write_text(json.dumps(summary))
        write_model(folder / "model", classifier="reward" in run.name)
        run.summary = summary

    monkeypatch.setattr(command, "carry_out", carry_out)
    monkeypatch.setattr("rlhf_lightning.commands.build.build", lambda section, key, **arguments: None)
    monkeypatch.setattr(command, "evaluate", lambda pipeline: [])
    return ran


def test_stages_run_in_order_and_their_figures_are_flat_in_one_summary(recorded, empty_folder):
    pipeline = composed("logger=none", "stages.ppo.algorithm.kl.target=6.0")
    summary = command.run_pipeline(pipeline)
    assert recorded == ["demo-sft", "demo-reward", "demo-ppo", "demo-dpo"]
    written = json.loads((empty_folder / "there" / "summary.json").read_text())
    assert written == summary
    assert written["reward.accuracy"] == 0.8
    assert (written["ppo.kl"], written["ppo.kl_target"], written["ppo.kl_coef"]) == (2.5, 6.0, 0.2)
    assert "wall_seconds" in written
    assert written["ppo.cpu_seconds"] == 0.5


def test_from_keeps_the_earlier_stages_and_their_figures(recorded, empty_folder):
    pipeline = composed("logger=none")
    command.run_pipeline(pipeline)
    recorded.clear()
    pipeline = composed("logger=none", "from=ppo")
    summary = command.run_pipeline(pipeline)
    assert recorded == ["demo-ppo", "demo-dpo"]
    assert summary["reward.accuracy"] == 0.8


def test_the_config_of_a_pipeline_holds_every_stage_in_full(recorded, empty_folder):
    pipeline = composed("logger=none")
    command.run_pipeline(pipeline)
    text = (empty_folder / "there" / "config.yaml").read_text()
    assert "rlhf_lightning.algorithms.PPOModule" in text


def test_the_compared_policies_are_the_stages_without_a_reward_model(empty_folder):
    assert policy_stages(composed()) == ["sft", "ppo", "dpo"]


@pytest.mark.parametrize(("kind", "target"), [("adaptive", 2.5), ("multiplicative", 2.5), ("fixed", None)])
def test_a_target_is_reported_where_a_controller_holds_one(kind, target):
    config = compose_config("train", ["experiment=ppo", f"algorithm.kl.kind={kind}", "algorithm.kl.target=2.5"])
    figures = stage_metrics({"objective/kl": 2.0, "kl/coef": 0.1}, config)
    assert figures.get("kl_target") == target
    assert figures["kl_coef"] == 0.1


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("evaluation.prompts=nowhere.jsonl", r"evaluation\.prompts: nowhere\.jsonl does not exist"),
        ("evaluation.prompts=there/worlds/prompts.jsonl", r"evaluation\.prompts: .* does not exist"),
        (
            "evaluation.policies=[sft,reward]",
            r'policies: found "reward"; must be a stage \(sft, ppo, dpo\)',
        ),
        ("evaluation.proxy=sft", r'evaluation\.proxy: found "sft"; must be a stage \(reward\)'),
        ("evaluation.baseline=reward", r"evaluation\.baseline"),
    ],
)
def test_what_the_evaluation_cannot_use_is_said_before_the_first_stage(empty_folder, override, said):
    with pytest.raises(UserError, match=said):
        composed(override)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["evaluation.gold=nowhere.fn"], r"evaluation\.gold: cannot import nowhere"),
        (["evaluation.gold=json.nope"], r"evaluation\.gold: cannot import json\.nope: json has no 'nope'"),
        (["evaluation.gold=json.dumps"], r"evaluation\.gold: json\.dumps"),
        (
            ["stages.ppo.reward_from=null", "stages.ppo.reward.model=null", "stages.ppo.reward.function=nowhere.fn"],
            r"stages\.ppo\.reward\.function: cannot import nowhere",
        ),
        (
            [
                "stages.ppo.reward_from=null",
                "stages.ppo.reward.model=null",
                "stages.ppo.reward.components={a: {function: nowhere.fn}}",
            ],
            r"stages\.ppo\.reward\.components\.a\.function: cannot import nowhere",
        ),
    ],
)
def test_reward_functions_of_later_stages_are_imported_before_the_first_one(empty_folder, monkeypatch, overrides, said):
    monkeypatch.setattr(command, "carry_out", lambda run: pytest.fail("a stage has run"))
    with pytest.raises(UserError, match=said):
        start(*overrides)
    assert not Path("there").exists()


def test_a_start_that_fails_leaves_the_folder_of_a_finished_pipeline(recorded, empty_folder, monkeypatch):
    pipeline = composed("logger=none")
    command.run_pipeline(pipeline)
    files = [Path("there/config.yaml"), Path("there/summary.json")]
    former = [file.read_bytes() for file in files]

    def fails(run: Run) -> None:
        raise UserError("model.path: broken")

    monkeypatch.setattr(command, "carry_out", fails)
    pipeline = composed("logger=none", "seed=7")
    with pytest.raises(UserError, match="broken"):
        command.run_pipeline(pipeline)
    assert [file.read_bytes() for file in files] == former


def test_a_folder_that_cannot_be_written_is_said_before_anything_runs(recorded, empty_folder):
    pipeline = composed("logger=none", folder=Path("file/there"))
    Path("file").touch()
    with pytest.raises(UserError, match="run_dir: file is a file"):
        command.run_pipeline(pipeline)
    assert recorded == []


def test_a_prepare_that_fails_is_one_line(empty_folder):
    pipeline = composed("logger=none")
    pipeline.config["prepare"] = {"_target_": "operator.truediv", "_args_": [1, 0]}
    with pytest.raises(UserError, match="prepare: the call failed: ZeroDivisionError"):
        command.run_pipeline(pipeline)
