"""Bad inputs of judges: rlhf-judge, and rlhf-evaluate beside rewards."""

from __future__ import annotations

from pathlib import Path

from bad_input_catalogue.case import EVALUATE, PPO, Case, changed, writes

AT = ["judge.model=m", "judge.url=http://127.0.0.1:9/v1"]
ACCURACY = ["rewards={s: {model: scorer}}", "preferences=pairs.jsonl"]
_BAD_KEY = r"judge\.key_env: .*HOME_OF_NO_KEY is not set"


def _store(folder: Path) -> None:
    from rlhf_lightning.feedback.store import FeedbackStore

    FeedbackStore(f"sqlite:///{folder}/outputs/feedback.db").close()


def _judge(name: str, names: str, *words: str, fast: bool = False) -> Case:
    return Case(f"judge: {name}", "judge", changed(AT, *words), names, _store, fast=fast)


def _rows(name: str, key: str, row: str, names: str) -> Case:
    words = [*AT, f"{key}=own.jsonl"]
    return Case(f"judge: {name}", "judge", words, rf"own\.jsonl, row 1: {names}", writes("own.jsonl", row + "\n"))


def _constitution(name: str, content: str, names: str) -> Case:
    def prepare(folder: Path) -> None:
        _store(folder)
        writes("own.yaml", content)(folder)

    words = [*AT, "judge.constitution=own.yaml"]
    return Case(f"judge: {name}", "judge", words, rf"judge\.constitution: own\.yaml{names}", prepare)


def _scorer(name: str, settings: str, names: str) -> Case:
    words = ["callbacks=overoptimization", f"callbacks.overoptimization.scorers={{j: {settings}}}"]
    where = rf"callbacks\.overoptimization\.scorers\.j\.{names}"
    return Case(f"held-out judge: {name}", "train", changed(PPO, "data.val=prompts.jsonl", *words), where)


def _accuracy(name: str, row: str, names: str) -> Case:
    words = changed(ACCURACY, "preferences=own.jsonl")
    return Case(f"accuracy: {name}", "evaluate", words, rf"own\.jsonl, row 1: {names}", writes("own.jsonl", row + "\n"))


JUDGING = [
    Case("judge: nothing listens", "judge", [*AT, "data=pairs.jsonl"], r"judge\.url: .*:9/v1: it does not answer"),
    _judge("the store as cache", r"judge\.cache: .*something else", "judge.cache=outputs/feedback.db", fast=True),
    _judge("a folder as cache", r"judge\.cache: model is a folder", "judge.cache=model"),
    _judge("a word as port", r"judge\.url: .*is not valid", "judge.url=http://h:abc/v1"),
    _judge("a port too high", r"judge\.url: .*from 1 to 65535", "judge.url=http://h:4294967305/v1"),
    _judge("a space in the address", r"judge\.url: .*spaces", "judge.url='http://a b/v1'"),
    _judge("an open bracket", r"judge\.url: .*is not valid", "judge.url='http://[::1/v1'"),
    _judge("a key that is not set", _BAD_KEY, "judge.key_env=HOME_OF_NO_KEY"),
    _judge("a pace of years", r"judge\.per_minute: found 1e-09", "judge.per_minute=1e-9"),
    _judge("a folder as constitution", r"judge\.constitution: model is a folder", "judge.constitution=model"),
    _constitution("principles twice", "principles: [a]\nprinciples: [b]\n", " has `principles:` twice"),
    _constitution("more than principles", "principles: [a]\nmore: [b]\n", ": more is not read"),
    _rows("a number as completion", "revise", '{"prompt": "p", "completion": 5}', "completion: expected a string"),
    _rows("an object as prompt", "revise", '{"prompt": {"a": 1}, "completion": "c"}', "prompt: expected a string"),
    _rows("nothing to revise", "revise", '{"prompt": "p", "completion": ""}', "completion: the answer is empty"),
    _rows("texts as messages", "revise", '{"messages": ["a", "b"]}', "messages: expected"),
    _rows("the same twice", "data", '{"prompt": "p", "chosen": "a", "rejected": "a"}', "chosen and rejected: they"),
    _rows("half a character", "data", '{"prompt": "\\ud800", "chosen": "a", "rejected": "b"}', "prompt: .*surrogate"),
    _scorer("no model", "{judge: {by: reasons}}", r"judge\.model: missing"),
    _scorer("two sources", "{judge: {model: model}, model: scorer}", r"model and .*judge: only one source"),
    _scorer("a misspelt key", "{judge: {model: model, constitutoin: x}}", r"judge\.constitutoin: no such key"),
    Case(
        "judge of a component: a misspelt key",
        "train",
        changed(PPO, "reward.function=null", "reward.components={a: {judge: {model: model, constitutoin: x}}}"),
        r"reward\.components\.a\.judge\.constitutoin: no such key; did you mean",
    ),
    _scorer("of an endpoint", "{judge: {model: model, parallel: 2}}", r"judge\.parallel: it has no effect"),
    _scorer("a word as port", "{judge: {model: m, url: 'http://h:abc/v1'}}", r"judge\.url: .*is not valid"),
    _scorer("a reward model", "{judge: {model: scorer}}", r"judge\.model: scorer is a reward model"),
    _scorer("a folder as constitution", "{judge: {model: model, constitution: run}}", r"judge\.constitution: run is a"),
    _scorer("the folder does not exist", "{judge: {model: ./nowhere}}", r"judge\.model: \./nowhere does not exist"),
    Case("judge: revisions without end", "judge", [*AT, "revise=rows.jsonl", "revisions=1000000"], r"revisions: found"),
    Case(
        "collect: a server without a host",
        "collect",
        ["prompts=prompts.jsonl", "policies={a: 'http://'}"],
        r"policies\.a: found .*is not valid",
    ),
    Case(
        "collect: an ensemble of one model",
        "collect",
        ["responses=rows.jsonl", "choice=uncertain", "reward.model=[scorer,./scorer]"],
        r"reward\.model: \./scorer is named twice",
    ),
    Case("export: weights beyond bounds", "export", ["average=[run,model]", "weights=[1,1e308]", "to=o"], r"1e12"),
    Case("evaluate: a judge's settings alone", "evaluate", [*EVALUATE, "judge.by=reasons"], r"judge\.by: only a judge"),
    Case("refusals: no judge", "evaluate", [*EVALUATE, "refusal_detector=judge"], r"refusal_detector: .*no judge"),
    Case(
        "refusals: a judge that compares",
        "evaluate",
        [*EVALUATE, "refusal_detector=judge", "judge.function=mine.score"],
        r"refusal_detector: .*judge\.function compares",
    ),
    Case(
        "refusals: nothing to refuse",
        "evaluate",
        [*EVALUATE, "refusal_detector=judge", "judge.model=model"],
        r"refusal_detector: no row of prompts\.jsonl has a kind",
    ),
    Case(
        "refusals: a reward model as judge",
        "evaluate",
        [*EVALUATE, "refusal_detector=judge", "judge.model=scorer"],
        r"judge\.model: scorer is a reward model",
    ),
    Case(
        "evaluate: a number as kind",
        "evaluate",
        EVALUATE,
        r"prompts\.jsonl, row 1: kind: found 5",
        writes("prompts.jsonl", '{"prompt": "how do i", "kind": 5}\n'),
    ),
    Case("accuracy: a temperature", "evaluate", [*ACCURACY, "temperature=0.5"], r"temperature: nothing is sampled"),
    _accuracy("half a character", '{"prompt": "\\ud800", "chosen": "a", "rejected": "b"}', "prompt: .*surrogate"),
    _accuracy("the total", '{"prompt": "p", "chosen": "a", "rejected": "b", "kind": "all pairs"}', "kind: found"),
    _accuracy("a list", '{"prompt": "p", "chosen": "a", "rejected": "b", "kind": ["x"]}', "kind: found"),
    Case(
        "verifiers: tests that test nothing",
        "train",
        changed(
            PPO,
            "reward.function=rlhf_lightning.rewards.code_runs",
            "reward.arguments={run_code: true}",
            "data.train=own.jsonl",
        ),
        r"reward\.arguments\.column: 'tests' .*own\.jsonl, row",
        writes(
            "own.jsonl", "".join(f'{{"prompt": "{each}", "tests": "[1]"}}\n' for each in ("how do i", "what is") * 4)
        ),
    ),
]
