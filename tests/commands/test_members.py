"""Ensembles in a pipeline: what a stage with members stands for, what takes it, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlhf_lightning.commands import pipeline as command
from rlhf_lightning.commands.pipeline_evaluation import evaluate
from rlhf_lightning.errors import UserError
from rlhf_lightning.runs.calls import call_config
from rlhf_lightning.runs.pipeline import Pipeline
from rlhf_lightning.runs.run import Run

MEMBERS = ["reward_a", "reward_b", "reward_c"]


def composed(*overrides: str, members: int = 3) -> Pipeline:
    """Compose the demo's pipeline with an ensemble in place of its reward model."""
    words = ["pipeline=demo", "run_dir=there", "logger=none", f"stages.reward.members={members}", "seed=7"]
    pipeline = command.compose_pipeline([*words, *overrides])
    command.check_pipeline(pipeline)
    return pipeline


def config_of(pipeline: Pipeline, name: str) -> dict[str, Any]:
    return next(stage.config for stage in pipeline.to_run if stage.name == name)


def test_a_stage_with_members_trains_each_from_a_seed_of_its_own(empty_folder):
    pipeline = composed()
    assert [stage.name for stage in pipeline.to_run if stage.scores] == MEMBERS
    configs = [config_of(pipeline, name) for name in MEMBERS]
    assert [config["seed"] for config in configs] == [7, 8, 9]
    assert [config["run_dir"] for config in configs] == [f"there/{name}" for name in MEMBERS]
    written = [{**config, "seed": 0, "run_dir": "", "name": ""} for config in configs]
    assert written[0] == written[1] == written[2]


def test_the_stage_that_takes_its_reward_from_them_gets_them_all(empty_folder):
    reward = config_of(composed(), "ppo")["reward"]
    assert (reward["model"], reward["models"]) == (None, [f"there/{name}" for name in MEMBERS])
    one = config_of(composed("stages.ppo.reward_from=reward_b"), "ppo")["reward"]
    assert (one["model"], one["models"]) == ("there/reward_b", None)


def test_one_member_is_the_stage_itself(empty_folder):
    pipeline = composed(members=1)
    assert [stage.name for stage in pipeline.to_run if stage.scores] == ["reward"]
    assert config_of(pipeline, "ppo")["reward"]["model"] == "there/reward"


def test_keys_are_set_for_all_members_or_for_one(empty_folder):
    pipeline = composed(
        "stages.reward.optimizer.lr=1e-4", "stages.reward_c.optimizer.lr=1e-5", "stages.reward_b.seed=1"
    )
    configs = [config_of(pipeline, name) for name in MEMBERS]
    assert [config["optimizer"]["lr"] for config in configs] == [1e-4, 1e-4, 1e-5]
    assert [config["seed"] for config in configs] == [7, 1, 9]


def test_a_function_gets_the_folders_of_all_members():
    stage = {
        "call": {"_target_": "rlhf_lightning.feedback.collect"},
        "reward_from": ["r_a", "r_b"],
        "model_from": "sft",
    }
    call = call_config("collect", stage, "mine", Path("there"))["call"]
    assert (call["reward_model"], call["model"]) == (["there/r_a", "there/r_b"], "there/sft")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("stages.reward.members=0", "stages.reward.members: found 0; must be a whole number from 1 to 26"),
        ("stages.reward.members=27", "stages.reward.members: found 27; must be a whole number from 1 to 26"),
        ("stages.sft.members=2", "stages.sft.members: found 2; only reward models form an ensemble"),
        ("stages.reward.seed=1", "stages.reward.seed: all 3 members would be the same"),
        ("stages.reward.overrides.seed=1", "stages.reward.seed: all 3 members would be the same"),
        ("stages.reward_d.optimizer.lr=1", "stages.reward_d: no such stage; allowed: sft, reward, ppo"),
        ("stages.reward_b.data.batch_sise=8", "stages.reward_b.data.batch_sise: no such key"),
        ("stages.ppo.reward_from=reward_d", 'stages.ppo.reward_from: found "reward_d"; must be an earlier stage'),
        ("stages.ppo.model_from=reward", 'stages.ppo.model_from: found "reward", a reward model; must be a stage'),
        (
            "++stages.more={experiment:reward_demo,model_from:reward}",
            'found "reward", an ensemble; name one of its mem',
        ),
        ("stages.ppo.reward.model=x", "stages.ppo.reward.model: the stage takes the model of reward_from=[reward_a,"),
        (
            "stages.ppo.reward.models=[x,y]",
            "stages.ppo.reward.models: the stage takes the model of reward_from=[reward",
        ),
        ("evaluation.proxy=reward_d", "must be a stage (reward, reward_a, reward_b, reward_c); did you mean reward_"),
        (
            "++stages.reward_b={experiment:reward_demo,model_from:sft}",
            "stages.reward.members: stages.reward_b has the name of a member; choose another one",
        ),
    ],
)
def test_what_is_wrong_with_an_ensemble_is_said_before_the_first_stage(override, expected, empty_folder):
    with pytest.raises(UserError) as error:
        composed(override)
    assert expected in str(error.value)


@pytest.fixture
def recorded(monkeypatch, empty_folder) -> list[str]:
    """Let stages only record that they ran, with accuracies that differ, and evaluate nothing."""
    ran: list[str] = []

    def carry_out(run: Run) -> None:
        ran.append(run.name.removeprefix("demo-"))
        with run.in_place():
            run.begin()
            run.summary = {"val/accuracy": 0.5 + 0.125 * run.config["seed"], "cpu_seconds": 2.0}
            run.end()

    monkeypatch.setattr(command, "carry_out", carry_out)
    monkeypatch.setattr(command, "evaluate", lambda pipeline: [])
    monkeypatch.setattr(command, "rehearse", lambda pipeline: None)
    return ran


def test_the_summary_has_the_mean_of_the_members_and_the_sum_of_their_times(recorded):
    summary = command.run_pipeline(composed("seed=0"))
    assert recorded == ["sft", *MEMBERS, *(name for name in recorded[4:])]
    assert [summary[f"{name}.accuracy"] for name in (*MEMBERS, "reward")] == [0.5, 0.625, 0.75, 0.625]
    assert summary["reward.cpu_seconds"] == 6.0


def test_from_an_ensemble_runs_all_members_again_and_from_one_the_later_ones(recorded):
    command.run_pipeline(composed())
    for first, expected in (("reward", MEMBERS), ("reward_b", MEMBERS[1:])):
        recorded.clear()
        command.run_pipeline(composed(f"from={first}"))
        assert recorded[: len(expected)] == expected


def test_the_proxy_is_the_ensemble_once_all_members_have_ended(monkeypatch, empty_folder):
    from rlhf_lightning import evaluation, rewards

    given: list[dict[str, Any]] = []
    monkeypatch.setattr(rewards, "make_reward", lambda **settings: given.append(settings) or "scorer")

    class StoppedError(Exception):
        pass

    def evaluate_policies(**settings: Any) -> None:
        raise StoppedError(settings["proxy"])

    monkeypatch.setattr(evaluation, "evaluate_policies", evaluate_policies)
    pipeline = composed("evaluation.proxy=reward", "evaluation.gold=null")
    for ended, expected in ((3, "None"), (4, "scorer")):
        pipeline._ended = ended
        with pytest.raises(StoppedError, match=expected):
            evaluate(pipeline)
    assert given[0]["models"] == [f"there/{name}" for name in MEMBERS]
