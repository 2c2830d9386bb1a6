"""rlhf-judge as a user calls it: resumed, killed, against a failing server, and with a local model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from rlhf_lightning.commands import judge, train
from rlhf_lightning.commands.composition import compose_config
from rlhf_lightning.config.inputs import check_inputs
from rlhf_lightning.errors import UserError
from rlhf_lightning.feedback import Answer, FeedbackStore, Response, Task, task_id
from tests.fake_endpoint import prefers_good, serving
from tests.judges import write_judge
from tests.programs import program

URL = "sqlite:///feedback.db"


def make_store(count=6, rankings=1):
    tasks = []
    for i in range(count):
        texts = (f"good {i}", f"bad {i}") if i % 2 else (f"bad {i}", f"good {i}")
        tasks.append(Task(task_id("pair", f"p{i}", texts), "pair", f"p{i}", tuple(map(Response, texts)), overlap=2))
    for i in range(rankings):
        texts = ("bad", "good", "worse")
        tasks.append(Task(task_id("ranking", f"r{i}", texts), "ranking", f"r{i}", tuple(map(Response, texts))))
    with FeedbackStore(URL) as store:
        store.add_tasks(tasks)
        store.add_labeler("ana")
        store.record("ana", tasks[0].id, Answer("choice", 1))
        store.record("ana", tasks[1].id, Answer("choice", 1))


def run(*words):
    judge.judge(compose_config("judge", [f"feedback.store={URL}", "run_dir=run", *words]))


def at(server, *more):
    return [f"judge.url={server.url}", "judge.model=m", *more]


def test_a_server_judges_the_store_once(empty_folder, capsys):
    make_store()
    with serving(prefers_good) as server:
        run(*at(server, "judge.by=reasons", "judge.prompt_price=1", "judge.completion_price=2", "limit=5"))
        run(*at(server, "judge.by=reasons"))
        asked = len(server.asked)
        run(*at(server, "judge.by=reasons"))
        assert len(server.asked) == asked == 2 * (6 + 3)
    out = capsys.readouterr().out
    assert "judged: 5" in out and "judged: 2, 5 before" in out and "cost 0.0001" in out
    assert "agrees with people in 50.0% (9 to 91) of 2" in out
    with FeedbackStore(URL) as store:
        said = {each.task: each.answer for each in store.judgements() if each.labeler == "judge"}
        assert [labeler.kind for labeler in store.labelers()] == ["person", "model"]
        for task in store.tasks():
            texts = [response.text for response in task.responses]
            if task.kind == "pair":
                assert texts[said[task.id].choice].startswith("good")
            else:
                assert said[task.id].ranks[texts.index("good")] == 1


def test_rows_that_people_labelled_are_compared_with(empty_folder, capsys):
    rows = [{"prompt": f"p{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(9)]
    rows.append({"prompt": "silent", "chosen": "good", "rejected": "bad"})
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with serving(prefers_good) as server:
        words = ["data=rows.jsonl", "run_dir=run", *at(server)]
        judge.judge(compose_config("judge", [*words, "judge.by=reasons"]))
        assert "agrees with the labels in 100.0% (70 to 100) of 9" in capsys.readouterr().out
        judge.judge(compose_config("judge", [*words, "judge.by=logprobs", "limit=9"]))
    summary = json.loads(Path("run/summary.json").read_text())
    assert (summary["tasks"], summary["refused"], summary["agreement"], summary["retries"]) == (9, 0, 1.0, 0)
    lines = [json.loads(line) for line in Path("run/verdicts.jsonl").read_text().splitlines()]
    assert [line["row"] for line in lines] == list(range(1, 10)) and all(line["probability"] > 0.5 for line in lines)


def test_a_run_that_was_killed_asks_nothing_twice_and_loses_nothing(empty_folder):
    make_store(40, rankings=0)
    with serving(prefers_good, stop_after=70) as server:
        words = [program("rlhf-judge"), f"feedback.store={URL}", "run_dir=run", "judge.by=reasons", *at(server)]
        with subprocess.Popen([*words, "judge.parallel=4"], env=os.environ, stderr=subprocess.DEVNULL) as killed:
            assert server.stopped.wait(120)
            killed.send_signal(signal.SIGKILL)
        before = list(server.answered)
        server.stop_after = None
        server.go_on.set()
        with FeedbackStore(URL) as store:
            kept = sum(each.labeler == "judge" for each in store.judgements())
        assert kept == 32  # the first batch of tasks
        run("judge.by=reasons", *at(server))
        later = server.answered[len(before) :]
        assert len(set(before) & set(later)) <= 4  # whose answers were in flight when it was killed
        assert len(set(before) | set(later)) == 80 and len(later) == len(set(later))
    with FeedbackStore(URL) as store:
        assert sum(each.labeler == "judge" for each in store.judgements()) == 40


def test_a_model_of_ones_own_judges_and_revises(empty_folder, capsys):
    make_store()
    write_judge(Path("model"))
    run("judge.model=model", "tie_below=0.001")
    assert "judged: 7" in capsys.readouterr().out
    Path("answers.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "c", "completion": "d"}\n')
    words = ["judge.model=model", "revise=answers.jsonl", "judge.max_new_tokens=5", "run_dir=revised"]
    judge.judge(compose_config("judge", words))
    rows = [json.loads(line) for line in Path("revised/revisions.jsonl").read_text().splitlines()]
    chains = [json.loads(line) for line in Path("revised/chains.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == [chain["prompt"] for chain in chains]
    assert rows[0]["completion"] == chains[0]["steps"][0]["revision"] != ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], r"judge\.model: missing"),
        (["judge.model=nowhere/at/all"], r"judge\.model: nowhere/at/all does not exist"),
        (
            ["judge.model=m", "judge.url=http://127.0.0.1:9/v1", "judge.attempts=1"],
            r"judge\.url: .*check that the server is running",
        ),
        (["judge.model=m", "judge.url=http://x/v1", "judge.by=logprob"], r"judge\.by: .*did you mean logprobs"),
        (["judge.model=m", "judge.url=http://x/v1", "data=none.jsonl"], r"data: none\.jsonl does not exist"),
        (["judge.model=m", "judge.url=http://x/v1", "data=a.jsonl", "revise=b.jsonl"], "data and revise: only one"),
        (["judge.model=m", "judge.url=http://x/v1", "revisions=2"], r"revisions: it has no effect here; give revise"),
        (["judge.model=m", "judge.url=http://x/v1", "labeler=ana"], r"labelers: ana is known as a person"),
        (["judge.modle=m"], r"judge\.modle: no such key; did you mean judge\.model"),
    ],
)
def test_what_cannot_be_right_is_refused(words, message, empty_folder):
    make_store(2, 0)
    with FeedbackStore(URL) as store:
        texts = ("a", "b")
        store.add_tasks([Task(task_id("pair", "q", texts), "pair", "q", tuple(map(Response, texts)))])
        store.record("ana", task_id("pair", "q", texts), Answer("choice", 0))
    with pytest.raises(UserError, match=message):
        run(*words)


def test_a_judge_rewards_a_policy(empty_folder):
    write_judge(Path("model"))
    Path("prompts.jsonl").write_text("".join(f'{{"prompt": "{word} b"}}\n' for word in "cdef"))
    settings = ["model.path=model", "data.train=prompts.jsonl", "rollout.batch_size=2", "rollout.max_new_tokens=4"]
    settings += ["rollout.samples_per_prompt=2", "trainer.max_epochs=1", "trainer.accelerator=cpu", "run_dir=trained"]
    settings += ["logger=none", "callbacks.instruments=null", "callbacks.progress=null", "reward.judge={model: model}"]
    train.train(compose_config("train", ["experiment=rloo", *settings]))
    summary = json.loads(Path("trained/summary.json").read_text())
    assert -1 < summary["objective/scores"] < 1


def see(config):
    train.check(config)
    check_inputs(config)


def test_a_judge_that_is_not_there_is_said_before_anything_is_loaded(empty_folder):
    write_judge(Path("model"))
    Path("prompts.jsonl").write_text('{"prompt": "a"}\n')
    words = ["experiment=rloo", "model.path=model", "data.train=prompts.jsonl", "reward=judge"]
    for more, message in (
        ([], r"reward\.judge\.model: missing"),
        (["reward.judge.model=no/such/folder"], r"reward\.judge\.model: no/such/folder does not exist"),
        (["reward.judge.model=model", "reward.judge.key_env=X"], r"reward\.judge\.key_env: it has no effect here"),
        (["reward.judge.model=model", "reward.judge.bye=1"], r"reward\.judge\.bye: no such key"),
    ):
        with pytest.raises(UserError, match=message):
            see(compose_config("train", [*words, *more]))
