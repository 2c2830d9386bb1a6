"""What a failed rlhf-evaluate leaves of an earlier evaluation, and what it reports before it samples."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from rlhf_lightning.commands import chat, evaluate
from rlhf_lightning.commands.composition import compose_config
from rlhf_lightning.errors import UserError
from rlhf_lightning.evaluation.judged import by_model
from rlhf_lightning.judging.judge import make_judge
from tests.commands.runs import write_model
from tests.fake_endpoint import serving


def config(*overrides: str) -> dict[str, Any]:
    write_model(Path("model"))
    Path("prompts.jsonl").write_text('{"prompt": "a b"}\n', encoding="utf-8")
    words = ["policies={a: model}", "baseline=a", "prompts=prompts.jsonl", "max_new_tokens=4", *overrides]
    return compose_config("evaluate", words)


def test_an_evaluation_that_fails_leaves_the_earlier_one(empty_folder, monkeypatch):
    settings = config("run_dir=done", "gold.function=broken.score")
    Path("done").mkdir()
    former = {"config.yaml": "former", "summary.json": "{}", "report.html": "former"}
    for name, content in former.items():
        (Path("done") / name).write_text(content, encoding="utf-8")
    Path("broken.py").write_text("def score(prompts, responses, **columns):\n    return None\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(Path.cwd()))
    with pytest.raises(UserError, match="NoneType"):
        evaluate.evaluate(settings)
    assert {path.name: path.read_text(encoding="utf-8") for path in Path("done").iterdir()} == former


def test_a_folder_that_cannot_be_written_is_said_before_anything_is_sampled(empty_folder, monkeypatch):
    settings = config("run_dir=file/report")
    Path("file").touch()
    monkeypatch.setattr("rlhf_lightning.evaluation.evaluate_policies", lambda **_: pytest.fail("it sampled"))
    with pytest.raises(UserError, match="run_dir: file is a file"):
        evaluate.evaluate(settings)


PAIRS = '{"prompt": "a", "chosen": "b c", "rejected": "d", "kind": "x"}\n'


def test_rewards_are_compared_without_policies(empty_folder, capsys):
    Path("pairs.jsonl").write_text(PAIRS * 4, encoding="utf-8")
    write_model(Path("reward"), classifier=True)
    gold = "rlhf_lightning.evaluation.refusals.read_detector_error"  # exists, and is never called
    words = ["+rewards.tiny={model: reward}", "preferences=pairs.jsonl", "run_dir=done"]
    evaluate.evaluate(compose_config("evaluate", words))
    summary = json.loads(Path("done/summary.json").read_text(encoding="utf-8"))
    assert summary["tiny.accuracy"] in (0.0, 1.0) and summary["tiny.accuracy.x_pairs"] == 4
    printed = capsys.readouterr().out
    assert "all pairs" in printed and not Path("done/report.html").exists()
    with pytest.raises(UserError, match="preferences: none given beside rewards"):
        evaluate.evaluate(compose_config("evaluate", [f"+rewards.a={{function: {gold}}}"]))


def test_a_judge_refusals_and_self_bleu_are_rows_of_the_table(empty_folder, monkeypatch, capsys):
    Path("judge_of_lengths.py").write_text(
        "def judge(prompts, shown, second):\n    return [float(len(a) > len(b)) for a, b in zip(shown, second)]\n",
        encoding="utf-8",
    )
    Path("labels.jsonl").write_text(
        '{"prompt": "a", "response": "I can not.", "refused": true}\n'
        '{"prompt": "a", "response": "I can.", "refused": false}\n',
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(str(Path.cwd()))
    settings = config("run_dir=done", "judge.function=judge_of_lengths.judge", "refusals=labels.jsonl", "self_bleu=2")
    write_model(Path("other"))
    rows = [{"prompt": "a b", "kind": "unsafe"}, {"prompt": "c", "kind": "question"}, {"prompt": "d", "kind": None}]
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    settings["policies"] = {"a": "model", "b": "other"}
    evaluate.evaluate(settings)
    summary = json.loads(Path("done/summary.json").read_text(encoding="utf-8"))
    assert {"b.judge_win_rate_vs_a", "b.judge_win_rate_lc_vs_a_low", "a.self_bleu", "b.refused.question"} <= set(
        summary
    )
    assert summary["refusal_detector.missed"] == summary["a.unsafe_refusal_rate_corrected"] == 0.0
    printed = capsys.readouterr().out
    assert "wins by the judge" in printed and "self-BLEU" in printed


def test_a_judge_says_which_responses_refuse_and_its_error_is_measured(empty_folder, capsys, caplog):
    def says(question):
        if "[Reply]\n" not in question:
            return "Verdict: A"
        return "Hm." if "[Conversation]\nd\n" in question else f"Verdict: {'yes' if 'no way' in question else 'no'}"

    rows = [("no way", True), ("never", True), ("it is blue", False)]
    lines = [json.dumps({"prompt": "p", "response": text, "refused": refused}) for text, refused in rows]
    Path("labels.jsonl").write_text("\n".join(lines), encoding="utf-8")
    with serving(says) as server:
        words = [f"judge.url={server.url}", "judge.model=m", "judge.by=reasons", "refusal_detector=judge"]
        settings = config("run_dir=done", "refusals=labels.jsonl", *words)
        with pytest.raises(UserError, match=r"^refusal_detector: no row of prompts\.jsonl has a kind"):
            evaluate.evaluate({**settings, "refusals": None})
        kinds = [{"prompt": "a b", "kind": "unsafe"}, {"prompt": "c", "kind": "q"}, {"prompt": "d", "kind": "q"}]
        Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kinds), encoding="utf-8")
        evaluate.evaluate(settings)
    summary = json.loads(Path("done/summary.json").read_text(encoding="utf-8"))
    found = {name: summary[f"refusal_detector.{name}"] for name in ("missed", "false_alarms", "undecided")}
    assert found == {"missed": 0.5, "false_alarms": 0.0, "undecided": 0}
    assert summary["a.unsafe_refusal_rate"] == summary["a.over_refusal_rate"] == summary["a.refused.q"] == 0.0
    assert summary["a.refusal_undecided"] == pytest.approx(1 / 3) and "1 of 3 responses refuse" in caplog.text
    assert "no verdict on whether it refuses" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["judge.model=x", "judge.function=a.b"], r"^judge\.function and judge\.model: only one judge"),
        (["judge.model=x", "judge.parallel=2"], r"^judge\.parallel: it has no effect here"),
        (["judge.url=http://localhost:1/v1"], r"^judge\.model: missing"),
        (["judge.function=nowhere.judge"], r"^judge\.function: cannot import"),
        (["preferences=prompts.jsonl"], r"^rewards: none given beside preferences"),
        (["+rewards.a={}", "preferences=prompts.jsonl"], r"^rewards\.a: no source of scores"),
        (["+rewards.a={model: nowhere/at/all}", "preferences=prompts.jsonl"], r"^rewards\.a\.model: .*does not exist"),
        (["refusals=nowhere.jsonl"], r"^refusals: nowhere\.jsonl does not exist"),
        (["refusal_detector=judge"], r"^refusal_detector: found judge, but there is no judge; give judge\.model"),
        (
            ["refusal_detector=judge", "judge.function=a.b"],
            r"^refusal_detector: .*judge\.function compares two answers",
        ),
        (["refusal_detector=guess"], r"^refusal_detector: found .*guess"),
        (["judge.model=./nowhere"], r"^judge\.model: \./nowhere does not exist"),
        (["judge.by=reasons"], r"^judge\.by: only a judge that is a model reads it"),
        (["judge.cache=null"], r"^judge\.cache: only a judge that is a model reads it"),
        (["judge.function=a.b", "judge.batch_size=2"], r"^judge\.batch_size: only a judge that is a model"),
        (["gold.timeout=3"], r"^gold\.timeout: there is no gold\.function"),
        (["proxy.dtype=bfloat16"], r"^proxy\.dtype: there is no proxy\.function"),
        (["category=kind"], r"^category: only preferences have categories"),
        (["judge.model=x", "judge.url=http://h:abc/v1"], r"^judge\.url: .*is not valid"),
        (["self_bleu=1"], r"^self_bleu: found 1; must be a whole number from 2 to 10000 or null"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_anything_is_loaded(empty_folder, words, line):
    with pytest.raises(UserError, match=line):
        evaluate.check(config(*words))


@pytest.mark.parametrize(
    "word",
    [
        *("temperature=0.5", "samples_per_prompt=3", "max_new_tokens=3", "batch_size=2", "seed=1", "dtype=bfloat16"),
        *("attn_implementation=eager", "reference=a", "ilql_beta=1", "gold.function=a.b", "judge.model=m"),
        *("harness=[arc_easy]", "self_bleu=2", "refusal_detector=judge"),
    ],
)
def test_what_rewards_alone_do_not_read_is_refused(empty_folder, word):
    Path("pairs.jsonl").write_text(PAIRS, encoding="utf-8")
    words = ["+rewards.a={function: rlhf_lightning.simulation.gold_reward}", "preferences=pairs.jsonl"]
    evaluate.check(compose_config("evaluate", words))
    with pytest.raises(UserError, match=rf"^{word.partition('=')[0]}: (nothing is sampled|there are no policies)"):
        evaluate.check(compose_config("evaluate", [*words, word]))


def test_an_endpoint_is_asked_in_both_orders(empty_folder, monkeypatch):
    asked = []

    def logprobs(self, questions, verdicts=("A", "B"), lead=""):
        asked.extend(questions)
        return [(-0.1, -2.0)] * len(questions)

    monkeypatch.setattr("rlhf_lightning.judging.endpoint.ChatEndpoint.logprobs", logprobs)
    judge = by_model(make_judge({"url": "http://localhost:1/v1", "model": "m", "cache": None}))
    found = judge(["p"], ["one"], ["other"])
    assert len(asked) == 2 and asked[0].index("one") < asked[0].index("other") and asked[1] != asked[0]
    assert found[0][0] == pytest.approx(1 - found[0][1]) and found[0][0] > 0.8


def test_what_a_judge_says_nothing_about_is_told(caplog):
    class Silent:
        def compare(self, comparisons):
            return [None] * len(comparisons)

    assert by_model(Silent())(["p"], ["a"], ["b"]) == [None]
    assert "1 of 1 comparisons have no verdict" in caplog.text


def test_best_of_n_stands_beside_training_in_the_report(empty_folder):
    settings = config("run_dir=done", "best_of=4", "course=run", "max_new_tokens=4")
    own = "rlhf_lightning.simulation.gold_reward"
    with pytest.raises(UserError, match="gold: missing; best-of-n beside training needs"):
        evaluate.check(settings)
    settings["gold"]["function"] = settings["proxy"]["function"] = own
    with pytest.raises(UserError, match="course: run has no metrics"):
        evaluate.check(settings)
    Path("run").mkdir()
    lines = [{"val/kl": kl, "val/scores": kl, "val/held_out": 1 - kl} for kl in (0.5, 1.0, 2.0)]
    Path("run/metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    Path("lengths.py").write_text(
        "def score(prompts, responses, **columns):\n    return [float(len(each)) for each in responses]\n",
        encoding="utf-8",
    )
    settings["gold"]["function"] = settings["proxy"]["function"] = "lengths.score"
    evaluate.evaluate(settings)
    summary = json.loads(Path("done/summary.json").read_text(encoding="utf-8"))
    assert summary["fit.best-of-n.proxy.alpha"] == summary["fit.best-of-n.held_out.alpha"]  # the same scorer twice
    assert summary["fit.training.proxy.alpha"] != 0
    assert "best-of-n" in Path("done/report.html").read_text(encoding="utf-8")


LENGTHS = "def score(prompts, responses, **columns):\n    return [float(len(each)) for each in responses]\n"


def test_the_best_of_n_is_a_policy_beside_the_one_that_it_samples(empty_folder, capsys):
    Path("lengths.py").write_text(LENGTHS, encoding="utf-8")
    words = ["best_of=4", "reward.function=lengths.score", "gold.function=lengths.score", "samples_per_prompt=8"]
    evaluate.evaluate(config("run_dir=done", *words))
    summary = json.loads(Path("done/summary.json").read_text(encoding="utf-8"))
    assert summary["a_best_of_4.gold_mean"] > summary["a.gold_mean"]
    assert summary["a_best_of_4.gold_win_rate_vs_a"] > 0.5
    assert summary["a_best_of_4.kl_bound"] == pytest.approx(math.log(4) - 3 / 4)  # the reference is the policy itself
    assert summary["a.kl"] == 0.0 and "a_best_of_4.kl" not in summary and "a.kl_bound" not in summary
    printed = capsys.readouterr().out
    assert "best of 4: at most 0.636 nats per response from the policy that it samples" in printed
    evaluate.evaluate(config("run_dir=plain", *words[2:]))
    plain = json.loads(Path("plain/summary.json").read_text(encoding="utf-8"))
    assert all(summary[key] == value for key, value in plain.items() if key.startswith("a."))


NOT_BEST = [
    (["best_of=4"], "best_of: found 4, and no reward to choose by; give reward.model="),
    (["best_of=1", "reward.function=a.b"], "best_of: found 1"),
    (["reward.function=a.b"], "reward.function: found a.b, and nothing is chosen by it; give best_of="),
    (["reward.dtype=bfloat16"], "reward.dtype: found bfloat16, and nothing is chosen by it"),
    (
        ["best_of=4", "reward.function=rlhf_lightning.simulation.gold_reward", "temperature=0"],
        "best_of: with temperature=0 all answers",
    ),
    (
        ["best_of=4", "reward.function=rlhf_lightning.simulation.gold_reward", "reward.model=x"],
        "reward.function and reward.model: only one",
    ),
    (["best_of=4", "reward.model=a/gone/model"], "reward.model: a/gone/model does not exist"),
]


@pytest.mark.parametrize(("words", "line"), NOT_BEST)
def test_a_best_of_n_that_cannot_be_chosen_is_refused_in_one_line(words, line, empty_folder):
    for command, settings in (("evaluate", config(*words)), ("chat", compose_config("chat", ["model=model", *words]))):
        with pytest.raises(UserError) as error:
            {"evaluate": evaluate.check, "chat": chat.check}[command](settings)
        assert str(error.value).startswith(line) and "\n" not in str(error.value)


def test_a_policy_with_the_name_of_a_best_of_n_and_two_uses_of_it_are_refused(empty_folder):
    best = ["best_of=4", "reward.function=rlhf_lightning.simulation.gold_reward"]
    with pytest.raises(UserError, match=r"^policies\.a_best_of_4: best_of gives a this name"):
        evaluate.check({**config(*best), "policies": {"a": "model", "a_best_of_4": "model"}})
    own = [
        "gold.function=rlhf_lightning.simulation.gold_reward",
        "proxy.function=rlhf_lightning.simulation.gold_reward",
        "course=run",
    ]
    with pytest.raises(UserError, match=r"^reward: beside course, best_of draws the baseline's curves"):
        evaluate.check(config(*best, *own))
