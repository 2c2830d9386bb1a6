"""Rounds of a pipeline: what they consist of, what is refused, and how the same command continues."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf_lightning.commands import pipeline as command
from rlhf_lightning.commands.command_line import run_command
from rlhf_lightning.errors import UserError, WaitingError
from rlhf_lightning.feedback import Answer, FeedbackStore, Response, Task, task_id
from rlhf_lightning.runs.pipeline import Pipeline
from rlhf_lightning.runs.run import Run
from rlhf_lightning.tracking.contents import log_rounds


def composed(*overrides: str) -> Pipeline:
    pipeline = command.compose_pipeline(["pipeline=rounds", "run_dir=there", "logger=none", *overrides])
    command.check_pipeline(pipeline)
    return pipeline


def config_of(pipeline: Pipeline, name: str) -> dict[str, Any]:
    return next(stage.config for stage in pipeline.to_run if stage.name == name)


def test_every_round_collects_from_the_policy_before_it_and_learns_from_its_own_labels(empty_folder):
    pipeline = composed("rounds=2")
    each = ("collect", "label", "export", "reward", "ppo")
    written = dict.fromkeys(stage.stage or stage.name for stage in pipeline.to_run)
    assert list(written) == ["sft", *(f"{name}_{i}" for i in (1, 2) for name in each)]
    assert config_of(pipeline, "collect_1")["call"]["model"] == "there/sft"
    assert config_of(pipeline, "collect_2")["call"]["model"] == "there/ppo_1"
    assert [config_of(pipeline, f"collect_{i}")["call"]["baseline"] for i in (1, 2)] == ["there/sft"] * 2
    assert config_of(pipeline, "reward_2_b")["data"]["train"] == "there/export_2/preferences.jsonl"
    assert config_of(pipeline, "ppo_2")["model"]["path"] == "there/sft"
    assert config_of(pipeline, "ppo_2")["reward"]["models"] == [f"there/reward_2_{letter}" for letter in "abc"]
    assert pipeline.config["evaluation"]["proxy"] == "reward_2"


def test_a_key_is_set_for_all_rounds_or_for_one(empty_folder):
    pipeline = composed(
        "rounds=2", "round.ppo.optimizer.lr=1e-4", "stages.ppo_2.optimizer.lr=1e-5", "round.collect.call.limit=30",
        "stages.collect_2.call.limit=50",
    )  # fmt: skip
    assert [config_of(pipeline, f"ppo_{i}")["optimizer"]["lr"] for i in (1, 2)] == [1e-4, 1e-5]
    assert [config_of(pipeline, f"collect_{i}")["call"]["limit"] for i in (1, 2)] == [30, 50]


def test_another_algorithm_takes_ppos_place_and_reads_the_labels_in_its_own_form(empty_folder):
    words = ["~round.ppo", "~round.reward", "evaluation.proxy=null", "rounds=2"]
    pipeline = composed(*words, "+round.kto={experiment: kto, model_from: policy, data_from: export}")
    assert config_of(pipeline, "kto_2")["data"]["train"] == "there/export_2/unpaired.jsonl"
    assert config_of(pipeline, "kto_2")["model"]["path"] == "there/kto_1"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("round.collect.call.limt=3", "round.collect.call.limt: no such key; did you mean round.collect.call.limit?"),
        ("round.collect.call.limit=0", "round.collect.call.limit: found 0; must be a whole number >= 1"),
        ("stages.collect_2.call.overlap=0", "stages.collect_2.call.overlap: found 0; must be a whole number >= 1"),
        ("round.label.call.labelers.ana.temperature=0", "round.label.call.labelers.ana.temperature: found 0"),
        ("round.export.call.aggregation=mean", "must be majority | dawid_skene | bradley_terry"),
        (
            "round.collect.limit=3",
            "stages.collect_1: it calls a function, whose arguments are",
        ),
        ("round.collect.call.prompts=no.jsonl", "stages.collect_1.call.prompts: no.jsonl does not exist"),
        ("round.export.reward_from=sft", "stages.export_1.reward_from: rlhf_lightning.feedback.export_judgements has"),
        (f"round.collect.call.baseline={__file__}", "a file; give the folder of a model"),
        ("round.collect.call.baseline=no/such/sft", "stages.collect_1.call.baseline: no/such/sft does not exist"),
        (
            "stages.collect_2.call.baseline=there/reward_1_a",
            "baseline: found there/reward_1_a, of a stage that trains no policy",
        ),
        (
            "stages.collect_1.call.baseline=there/ppo_1",
            "baseline: found there/ppo_1, which this stage or a later one makes",
        ),
        ("round.collect.call.samples_per_prompt=3", "stages.collect_1.call.samples_per_prompt: 3; must be even"),
        ("round.ppo.data_from=export", "stages.ppo_1.data_from: PPOModule learns from rows of kind prompts"),
        (
            "round.reward.data.train=x.jsonl",
            "stages.reward_1_a.data.train: the stage takes the rows of data_from=export",
        ),
        ("round.pp.seed=1", "round.pp: no such stage; allowed: round.collect, round.label, round.export"),
        ("stages.collect_9.call.limit=5", "stages.collect_9.call._target_: missing"),
        ("stages.sft.model_from=policy", "stages.sft.model_from: found policy, but no stage before it trains one"),
        ("labelers=judge", "round.label.call.judge.model: missing; give round.label.call.judge.model=..."),
        ("rounds=-1", "rounds: found -1; must be a whole number >= 0"),
        ("labelers=robots", "labelers=robots: no such option"),
        ("feedback.stroe=x", "feedback.stroe: no such key; did you mean feedback.store?"),
    ],
)
def test_what_is_wrong_with_a_round_is_said_before_the_first_stage(override, expected, empty_folder):
    with pytest.raises(UserError) as error:
        composed(*([] if "rounds" in override else ["rounds=2" if "_2" in override else "rounds=1"]), override)
    assert expected in str(error.value)


@pytest.fixture
def recorded(monkeypatch, empty_folder) -> list[str]:
    """Let training stages only record that they ran; make the calls, and evaluate nothing."""
    ran: list[str] = []

    def carry_out(run: Run) -> None:
        ran.append(run.name.removeprefix("rounds-"))
        with run.in_place():
            run.begin()
            run.summary = {"val/loss": 0.5}
            run.end()

    def evaluate(pipeline: Pipeline) -> list[Path]:
        ran.append(f"evaluated: {' '.join(stage.name for stage in pipeline.ended if stage.gives_policy)}")
        return []

    monkeypatch.setattr(command, "carry_out", carry_out)
    monkeypatch.setattr(command, "evaluate", evaluate)
    monkeypatch.setattr(command, "rehearse", lambda pipeline: None)
    Path("round_calls.py").write_text(CALLS)
    monkeypatch.syspath_prepend(empty_folder)
    return ran


CALLS = """
from rlhf_lightning.feedback import FeedbackStore, Response, Task, task_id

def ask(folder, model, store, fails=False):
    if fails:
        raise RuntimeError("out of ideas")
    prompt, texts = f"after {model}", ("yes", "no")
    shown = tuple(Response(text, "policy") for text in texts)
    with FeedbackStore(store) as opened:
        opened.add_tasks([Task(task_id("pair", prompt, texts), "pair", prompt, shown)])
    return {"tasks": 1}
"""
MINE = [
    "labelers=people",
    "round.reward.members=1",
    "~round.collect.call",
    "+round.collect.call._target_=round_calls.ask",
]
STORE = "+round.collect.call.store=${feedback.store}"


def answer_all(choose: Callable[[Task], int] = lambda task: 0) -> None:
    with FeedbackStore("sqlite:///there/feedback.db") as store:
        store.add_labeler("ana")
        while shown := store.next_task("ana"):
            store.record("ana", shown.id, Answer("choice", choice=choose(store.task(shown.id))))


def test_with_people_it_stops_with_what_is_waiting_and_the_same_command_goes_on(recorded):
    for expected in (["sft", "evaluated: sft"], [], ["reward_1", "ppo_1", "evaluated: sft ppo_1"]):
        recorded.clear()
        with pytest.raises(WaitingError) as waiting:
            command.run_pipeline(composed(*MINE, STORE, "rounds=2"))
        assert "1 of" in str(waiting.value) and "go on with the same command" in str(waiting.value)
        assert recorded == expected
        if not expected:
            answer_all()
    answer_all()
    recorded.clear()
    summary = command.run_pipeline(composed(*MINE, STORE, "rounds=2"))
    assert recorded == ["reward_2", "ppo_2", "evaluated: sft ppo_1 ppo_2"]
    assert (summary["export_1.judgements"], summary["export_2.judgements"]) == (1, 2)


def test_waiting_is_exit_code_75_and_one_line(capsys):
    def body() -> None:
        raise WaitingError("1 of 2 tasks wait")

    with pytest.raises(SystemExit) as stopped:
        run_command(body)
    assert stopped.value.code == 75
    assert capsys.readouterr().err == "waiting: 1 of 2 tasks wait\n"


def run_through(recorded: list[str]) -> None:
    """Run one whole round."""
    with pytest.raises(WaitingError):
        command.run_pipeline(composed(*MINE, STORE, "rounds=1"))
    answer_all()
    command.run_pipeline(composed(*MINE, STORE, "rounds=1"))
    recorded.clear()


def test_a_pipeline_that_has_ended_repeats_nothing_and_takes_further_rounds(recorded):
    run_through(recorded)
    assert [stage.name for stage in composed(*MINE, STORE, "rounds=1").ahead] == ["ppo_1"]
    with pytest.raises(WaitingError):
        command.run_pipeline(composed(*MINE, STORE, "rounds=2"))
    assert recorded == []  # until people have answered


def test_a_stage_that_ended_with_another_config_is_refused(recorded):
    run_through(recorded)
    with pytest.raises(UserError, match=r"stages\.ppo_1\.optimizer\.lr: found 0\.5, but the stage has ended"):
        composed(*MINE, STORE, "rounds=1", "round.ppo.optimizer.lr=0.5")


def test_a_stage_that_runs_again_takes_those_after_it_along(recorded, monkeypatch):
    run_through(recorded)

    def killed(run: Run) -> None:
        with run.in_place():
            run.begin()
            run.summary = {"val/loss": 0.5}
            run.end()  # the stage ends, and the machine with it
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "carry_out", killed)
    with pytest.raises(KeyboardInterrupt):
        command.run_pipeline(composed(*MINE, STORE, "rounds=1", "from=reward_1"))
    assert Path("there/reward_1/summary.json").exists()
    assert not Path("there/ppo_1/summary.json").exists()  # it came from the earlier reward model
    assert composed(*MINE, STORE, "rounds=1").ahead[0].name == "ppo_1"


def test_what_a_call_raises_names_the_call(recorded):
    with pytest.raises(UserError, match=r"call: round_calls\.ask has failed: out of ideas"):
        command.run_pipeline(composed(*MINE, STORE, "rounds=1", "+round.collect.call.fails=true"))


def test_a_call_that_has_ended_leaves_its_config_and_figures(recorded):
    with pytest.raises(WaitingError):
        command.run_pipeline(composed(*MINE, STORE, "rounds=1"))
    assert json.loads(Path("there/collect_1/summary.json").read_text())["tasks"] == 1
    assert "round_calls.ask" in Path("there/collect_1/config.yaml").read_text()
    assert not Path("there/label_1/summary.json").exists()


def test_tasks_of_the_store_are_what_is_waited_for(tmp_path):
    from rlhf_lightning.feedback import wait_for_people

    url = f"sqlite:///{tmp_path}/feedback.db"
    with FeedbackStore(url) as store:
        for number in range(4):
            shown = (Response("yes"), Response("no"))
            store.add_tasks([Task(task_id("pair", str(number), ("yes", "no")), "pair", str(number), shown)])
        store.add_labeler("ana")
        store.record("ana", store.next_task("ana").id, Answer("tie"))  # type: ignore[union-attr]
        store.next_task("ana")
    with pytest.raises(
        WaitingError, match=r"3 of 4 tasks in .* wait for 3 answers of ana \(1 so far\), bo \(0 so far\)"
    ):
        wait_for_people(tmp_path, url, labelers=["bo"])
    assert wait_for_people(tmp_path, url, share=0.25) == {"answers": 1}


def test_a_store_gets_each_round_once_with_the_round_as_the_step(tmp_path):
    class Client:
        def __init__(self) -> None:
            self.points: list[Any] = []

        def get_metric_history(self, run_id: str, key: str) -> list[Any]:
            return [point for point in self.points if point.key == key]

        def log_batch(self, run_id: str, metrics: list[Any]) -> None:
            self.points += metrics

    client = Client()
    (tmp_path / "rounds.jsonl").write_text('{"round": 1, "ppo.gold_mean": 0.5}\n')
    log_rounds(client, "run", tmp_path)
    (tmp_path / "rounds.jsonl").write_text('{"round": 1, "ppo.gold_mean": 0.5}\n{"round": 2, "ppo.gold_mean": 0.75}\n')
    log_rounds(client, "run", tmp_path)
    found = [(point.key, point.step, point.value) for point in client.points]
    assert found == [("rounds/ppo.gold_mean", 1, 0.5), ("rounds/ppo.gold_mean", 2, 0.75)]
