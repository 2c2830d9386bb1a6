"""Bad inputs of the human-feedback commands: collecting and labelling."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
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


def _judged(folder: Path) -> None:
    """Make a store with one answered task, whose labeler is a model."""
    from rlhf_lightning.feedback import Answer, FeedbackStore, Response, Task

    with FeedbackStore(f"sqlite:///{folder}/outputs/feedback.db") as store:
        store.add_tasks([Task("t", "pair", "p", (Response("a"), Response("b")))])
        store.add_labeler("ana", "model", link=False)
        store.record("ana", "t", Answer("choice", 0))


def _broken(*statements: str) -> Callable[[Path], object]:
    """Return an action that makes such a store and damages it."""

    def damage(folder: Path) -> None:
        _judged(folder)
        with sqlite3.connect(folder / "outputs/feedback.db") as opened:
            for statement in statements:
                opened.execute(statement)

    return damage


def _given(name: str, names: str, *words: str, rows: str = GIVEN_ROW, **others: str) -> Case:
    def prepare(folder: Path) -> None:
        for file, content in {"given": rows, **others}.items():
            writes(f"{file}.jsonl", content)(folder)

    return Case(f"collect: {name}", "collect", [*GIVEN, *words], names, prepare)


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
    *(
        Case(f"store: {url}", "collect", [*GIVEN, f"feedback.store='{url}'"], names, writes("given.jsonl", GIVEN_ROW))
        for url, names in {
            "sqlite:///file:x.db?mode=memory&uri=true": r"feedback\.store: .*no options here, found mode, uri",
            "sqlite:///x.db?mode=ro": r"feedback\.store: .*found mode",
            "sqlite:///x.db?nosuch=1": r"feedback\.store: .*found nosuch",
            "sqlite://": r"feedback\.store: .*names no file",
            "sqlite:///:memory:": r"feedback\.store: .*names no file",
            "sqlite://host/x.db": r"feedback\.store: .*names no file",
            "sqlite+aiosqlite:///x.db": r"feedback\.store: .*own driver",
            "sqlite:////dev/null": r"feedback\.store: /dev/null is not a plain file",
            "sqlite:///model": r"feedback\.store: model is a folder",
            f"sqlite:///{'x' * 300}.db": r"feedback\.store: .*too long",
            "postgresql://u:secret@h:abc/x": r"feedback\.store: (?!.*secret).*not the URL of a database",
            "mysql://u@h/x": r"feedback\.store: .*pip install mysqlclient",
        }.items()
    ),
    *(
        Case(
            f"{command}: a store that is {kind}",
            command,
            [*words, f"feedback.store={url}"],
            r"feedback\.store: " + names,
        )
        for command, words in {"label": LABEL, "agreement": []}.items()
        for kind, url, names in (
            ("a folder", "sqlite:///model", "model is a folder"),
            ("not there", "sqlite+pysqlite:///nothere.db", r"nothere\.db does not exist"),
            ("in memory", "'sqlite:///x.db?mode=memory'", ".*no options here"),
        )
    ),
    *(
        Case(
            f"agreement: a broken store: {names}",
            "agreement",
            ["export=out"],
            r"feedback\.store: .*" + names,
            _broken(*how),
        )
        for names, how in {
            "task t cannot": ["UPDATE tasks SET prompt='{bad'"],
            "task t .*not a text": ["UPDATE responses SET text='3'"],
            "task t .*the JSON object": ["DELETE FROM responses"],
            "judgement 1 .*times": ["DROP TRIGGER judgements_no_update", "UPDATE judgements SET seconds='x'"],
            "judgement 1 .*strength 'y'": ["DROP TRIGGER judgements_no_update", "UPDATE judgements SET strength='y'"],
            "judgement 1 cannot": ["DROP TRIGGER judgements_no_update", "UPDATE judgements SET more='{'"],
            "judgement 1 .*verdict": ["DROP TRIGGER judgements_no_update", "UPDATE judgements SET choice=7"],
        }.items()
    ),
    Case(
        "label: a broken store",
        "label",
        ["labelers=[bo]", "port=0"],
        r"not a whole feedback store",
        _broken("DROP TABLE assignments", "DROP TABLE responses", "DROP TABLE tasks"),
    ),
    Case(
        "agreement: too many draws",
        "agreement",
        ["draws=1000000000000"],
        r"draws: found 1000000000000; must be .*100000",
    ),
    Case(
        "label: a name of a model", "label", ["labelers=[ana]", "port=0"], r"labelers: ana is known as a model", _judged
    ),
    Case("label: a name with a space", "label", ["labelers=['a b']", "port=0"], r"labelers.*1 to 64 letters", _store),
    Case("label: too many flags", "label", [*LABEL, "flags=[a,b,c,d,e,f,g,h,i,j,k]"], r"flags: found 11; .*at most 10"),
    *(
        Case(
            f"label: the address {url}", "label", [*LABEL, f"url='{url}'"], r"url: found .*must be .*like https://host"
        )
        for url in (
            "https://[::1",
            "https://x y",
            'https://x"><script>',
            "https://x:99999",
            "https://u@x",
            "https://[zz]",
            "https://..",
        )
    ),
    *(
        _given(f"nothing is sampled: {word}", rf"{word.partition('=')[0]}: it has no effect here", word)
        for word in (
            *("max_new_tokens=5", "samples_per_prompt=7", "temperature=0", "dtype=float16", "max_prompt_length=9"),
            *("batch_size=2", "attn_implementation=sdpa"),
        )
    ),
    _given("pairs of a ranking", r"pairs: it has no effect", "choice=ranking", "pairs=9"),
    _given("an overlap of no task", r"overlap: it has no effect", "overlap=3", "overlap_share=0"),
    _given("a share with one labeler", r"overlap_share: it has no effect", "overlap=1", "overlap_share=0.7"),
    _given("batches without a reward", r"reward\.batch_size: no effect", "reward.batch_size=3", "reward.timeout=3"),
    _given(
        "batches of a function",
        r"reward\.batch_size: only",
        "reward.batch_size=3",
        "reward.function=mine.score",
        "choice=uncertain",
    ),
    _collect(
        "a dtype of servers", r"dtype: it has no effect.*servers", "policies={a: 'http://127.0.0.1:9'}", "dtype=float16"
    ),
    _collect("too many samples", r"samples_per_prompt: found 100000000000; .*10000", "samples_per_prompt=100000000000"),
    _given(
        "the same response twice",
        r"given\.jsonl: no prompt has two different",
        rows='{"prompt": "a", "responses": ["1", "1 "]}\n',
    ),
    _given("one response", r"given\.jsonl: no prompt has two different", rows='{"prompt": "a", "completion": "1"}\n'),
    *(
        _given(
            f"responses and {others}",
            r"given\.jsonl, row 1: .*only one of them is read",
            rows=f'{{"prompt": "a", "responses": ["1", "2"], {others}}}\n',
        )
        for others in ('"completion": "3"', '"chosen": "3"', '"chosen": "3", "rejected": "4"')
    ),
    _given(
        "checks that contradict each other",
        r"ch\.jsonl, row 2: .*row 1",
        "checks=ch.jsonl",
        ch='{"prompt": "a", "chosen": "1", "rejected": "2"}\n{"prompt": "a", "chosen": "2", "rejected": "1"}\n',
    ),
]
