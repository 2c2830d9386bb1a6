"""Bad inputs of the human-feedback commands: collecting and labelling."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from bad_input_catalogue.case import Case, changed, writes

COLLECT = ["prompts=prompts.jsonl", "policies={a: model}", "max_new_tokens=4"]
GIVEN = ["responses=given.jsonl"]
LABEL = ["labelers=[ana,bo]", "port=0"]
GIVEN_ROW = '{"prompt": "a", "responses": ["1", "2"]}\n'


def _store(folder: Path) -> None:
    from rlhf_lightning.feedback.store import FeedbackStore

    FeedbackStore(f"sqlite:///{folder}/outputs/feedback.db").close()


def _of_another_program(folder: Path) -> None:
    with sqlite3.connect(folder / "other.db") as opened:
        opened.execute("CREATE TABLE tasks (x)")


def _later(folder: Path) -> None:
    _store(folder)
    with sqlite3.connect(folder / "outputs/feedback.db") as opened:
        opened.execute("UPDATE facts SET value = '99'")


def _collect(name: str, names: str, *words: str, fast: bool = False) -> Case:
    return Case(f"collect: {name}", "collect", changed(COLLECT, *words), names, fast=fast)


FEEDBACK = [
    _collect("unknown key", r"sample_per_prompt: no such key; did you mean samples_per_prompt", "sample_per_prompt=2"),
    _collect("unknown choice", r"choice: found .*must be random \| uncertain", "choice=uncertian", fast=True),
    _collect("a share above 1", r"overlap_share: found 1\.5", "overlap_share=1.5"),
    _collect("a negative share", r"reask: found -0\.1", "reask=-0.1"),
    _collect("no samples", r"samples_per_prompt: found 0", "samples_per_prompt=0"),
    _collect("one sample of one policy", r"samples_per_prompt: 1 response to each prompt", "samples_per_prompt=1"),
    _collect("temperature 0 and two samples", r"samples_per_prompt: found 2; at temperature 0", "temperature=0"),
    _collect("no policies", r"policies: none given", "policies={}", fast=True),
    _collect("a policy that does not exist", r"policies\.a: .*nowhere", "policies={a: nowhere/x}", fast=True),
    _collect("a reward model as policy", r"policies\.a: scorer", "policies={a: scorer}"),
    _collect(
        "a server that does not exist", r"policies\.a: http://127\.0\.0\.1:9", "policies={a: 'http://127.0.0.1:9'}"
    ),
    _collect("no prompts", r"prompts: nowhere", "prompts=nowhere.jsonl"),
    _collect("neither prompts nor responses", r"prompts, responses: neither", "prompts=null"),
    _collect("prompts and responses", r"prompts, responses: both", "responses=pairs.jsonl"),
    _collect("a split of a file", r"prompts: found prompts\.jsonl:test", "prompts=prompts.jsonl:test"),
    _collect("margins without a reward", r"choice: uncertain needs scores", "choice=uncertain"),
    _collect("a reward without margins", r"reward\.model: choice=random uses no scores", "reward.model=scorer"),
    _collect("a policy as reward", r"reward\.model: model is not a reward", "choice=uncertain", "reward.model=model"),
    _collect("a missing reward of two", r"reward\.model: .*gone/x", "choice=uncertain", "reward.model=[scorer,gone/x]"),
    _collect("two kinds of reward", r"reward", "choice=uncertain", "reward.model=scorer", "reward.function=mine.score"),
    Case(
        "collect: a function that fails",
        "collect",
        [*COLLECT, "choice=uncertain", "reward.function=mine.raises"],
        r"mine\.raises",
        further_lines=1,  # a line of the progress
    ),
    _collect("checks that do not exist", r"checks: nowhere", "checks=nowhere.jsonl"),
    _collect("checks without a pair", r"prompts\.jsonl, row 1: .*a check needs", "checks=prompts.jsonl"),
    _collect("not a URL", r"feedback\.store: 'outputs'", "feedback.store=outputs"),
    _collect("no driver", r"feedback\.store: nosuch", "feedback.store=nosuch://host/x"),
    Case(
        "collect: a store of another program",
        "collect",
        changed(COLLECT, "feedback.store=sqlite:///other.db"),
        r"feedback\.store: .*another program",
        _of_another_program,
    ),
    Case(
        "collect: prompts that are cut off",
        "collect",
        COLLECT,
        r"prompts\.jsonl:2: not JSON",
        writes("prompts.jsonl", '{"prompt": "a"}\n{"prompt": "b'),
    ),
    Case(
        "collect: rows without responses", "collect", ["responses=prompts.jsonl"], r"prompts\.jsonl, row 1: .*responses"
    ),
    Case(
        "collect: policies beside responses",
        "collect",
        [*GIVEN, "policies={a: model}"],
        r"policies: they answer",
        writes("given.jsonl", GIVEN_ROW),
    ),
    Case("label: no store", "label", LABEL, r"feedback\.store: outputs/feedback\.db.*rlhf-collect", fast=True),
    Case("label: nobody", "label", ["port=0"], r"labelers: none given", _store),
    Case("label: a name with a slash", "label", ["labelers=['a/b']", "port=0"], r"labelers", _store),
    Case("label: unknown key", "label", [*LABEL, "labellers=[ana]"], r"labellers: no such key; did you mean labelers"),
    Case("label: port too high", "label", ["labelers=[ana]", "port=70000"], r"port: found 70000"),
    Case("label: no such host", "label", [*LABEL, "host=256.1.1.1"], r"host: 256\.1\.1\.1", _store),
    Case("label: not an address", "label", [*LABEL, "url=label.example.org"], r"url: found"),
    Case("label: renew a stranger", "label", [*LABEL, "renew=[eve]"], r"renew: eve is not among", _store),
    Case("label: no guidelines", "label", [*LABEL, "guidelines=gone.md"], r"guidelines: gone\.md"),
    Case("label: guidelines are a folder", "label", [*LABEL, "guidelines=model"], r"guidelines: model is not a file"),
    Case(
        "label: guidelines are empty", "label", [*LABEL, "guidelines=g.md"], r"guidelines: g\.md", writes("g.md", " ")
    ),
    Case(
        "label: guidelines are not text",
        "label",
        [*LABEL, "guidelines=g.md"],
        r"guidelines: g\.md",
        writes("g.md", b"\xff\xfe\x00"),
    ),
    Case("label: a criterion twice", "label", [*LABEL, "criteria=[kind,kind]"], r'criteria: "kind"'),
    Case("label: a later version", "label", LABEL, r"later version", _later),
]
