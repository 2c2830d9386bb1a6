"""rlhf-agreement as a user calls it, and what trains on its files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from rlhf_lightning.commands import agreement, train
from rlhf_lightning.commands.composition import compose_config
from rlhf_lightning.errors import UserError
from rlhf_lightning.feedback import Answer, FeedbackStore, Response, Task, task_id
from tests.tiny import tiny_model, tiny_tokenizer

URL = "sqlite:///feedback.db"


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """Make 24 pairs and 6 rankings by two labelers who agree."""
    file = tmp_path_factory.mktemp("labelled") / "feedback.db"
    tasks = []
    for i in range(30):
        texts = [f"{word} b {'abcdefghij'[i % 10]}" for word in ("gh"[i % 2], "x", *("y" * (i >= 24)))]
        prompt, kind = f"a {'klmnopqrst'[i % 10]} {'uvw'[i // 10]}", "ranking" if len(texts) > 2 else "pair"
        tasks.append(Task(task_id(kind, prompt, texts), kind, prompt, tuple(map(Response, texts)), overlap=2))
    with FeedbackStore(f"sqlite:///{file}") as store:
        store.add_tasks(tasks)
        for name in ("ana", "bo"):
            store.add_labeler(name)
            for task in tasks:
                pair = task.kind == "pair"
                store.record(name, task.id, Answer("choice", 0) if pair else Answer("ranking", ranks=(1, 2, 3)))
    return file


@pytest.fixture
def labelled(empty_folder, database):
    shutil.copy(database, "feedback.db")
    return empty_folder


def run(*words):
    agreement.agreement(compose_config("agreement", [f"feedback.store={URL}", "draws=20", "run_dir=run", *words]))


def test_it_measures_prints_and_writes(labelled, capsys):
    run()
    out = capsys.readouterr().out
    assert "raw agreement 100%" in out and "Cohen's kappa" in out and "report: run/agreement.html" in out
    assert json.loads(Path("run/summary.json").read_text())["labelers"] == 2
    assert Path("run/config.yaml").is_file()


@pytest.mark.parametrize(
    ("experiment", "kind", "file"), [("reward", "preference", "preferences"), ("kto", "unpaired", "unpaired")]
)
def test_what_is_exported_trains_at_once(experiment, kind, file, labelled):
    run("export=labels", f"kind={kind}", "method=dawid_skene", "held_out=0.2")
    tiny_model().save_pretrained("model")
    tiny_tokenizer().save_pretrained("model")
    words = [f"experiment={experiment}", "model.path=model", f"data.train=labels/{file}.jsonl", "trainer.max_epochs=1"]
    words += [f"data.val=labels/{file}_test.jsonl", "data.val_fraction=0", "data.batch_size=8", "scheduler=constant"]
    words += [
        "logger=none",
        "trainer.accelerator=cpu",
        "callbacks.instruments=null",
        "callbacks.progress=null",
        "run_dir=trained",
    ]
    train.train(compose_config("train", words))
    summary = json.loads(Path("trained/summary.json").read_text())
    assert any(name.startswith("val/") for name in summary)


def test_another_tool_there_and_back(labelled, capsys):
    run("export=out", "format=label_studio")
    words = ["feedback.store=sqlite:///back.db", "format=label_studio", "run_dir=again", "draws=20"]
    agreement.agreement(compose_config("agreement", [*words, "import=out/pair/tasks.json"]))
    assert "imported: 24 tasks, 48 new answers" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["feedback.store=sqlite:///none.db"], r"feedback.store: none.db does not exist; rlhf-collect"),
        (["method=majorty"], r"method: .*did you mean majority"),
        (["labelers=[]"], r"labelers: found an empty list"),
        (["labelers=[cy]"], r"labelers: 'cy' is not in"),
        (["method=dawid_skene"], r"method: it has no effect here; give export="),
        (["export=out", "format=argilla", "held_out=0.2"], r"held_out: it has no effect here; only rows"),
        (["export=out", "held_out=1.0"], r"held_out: found 1.0"),
        (["export=feedback.db"], r"export: feedback.db is a file"),
        (["import=none.json", "format=argilla"], r"import: none.json does not exist"),
        (["import=feedback.db"], r"format: found rows, which cannot be imported"),
        (["format=argilla"], r"format: it has no effect here"),
        (["names.prompt=question"], r"names: it has no effect here; give import="),
        (["feedback.store=nonsense"], r"feedback.store: 'nonsense' is not the URL"),
        (["feedback.sotre=x"], r"feedback.sotre: no such key; did you mean feedback.store"),
    ],
)
def test_what_cannot_be_right_is_refused(words, message, labelled):
    with pytest.raises(UserError, match=message):
        run(*words)
    assert not Path("run").exists() and not Path("none.db").exists()
