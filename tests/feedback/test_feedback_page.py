"""The commands and the Python of docs/feedback.md run as written, with tiny models instead of the demo's."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from rlhf_lightning.commands import agreement, collect, label
from rlhf_lightning.commands.composition import compose_config
from rlhf_lightning.feedback import Answer, FeedbackStore
from rlhf_lightning.feedback.pages import serving
from tests.commands.runs import write_model

DOCS = Path(__file__).resolve().parents[2] / "docs" / "feedback.md"
RUN = {"rlhf-collect": collect.collect, "rlhf-label": label.label, "rlhf-agreement": agreement.agreement}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOCS.read_text(), re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Prepare what the demo would have left, and labelers who answer while a server runs."""
    monkeypatch.chdir(tmp_path)
    for name in ("sft", "ppo"):
        write_model(tmp_path / "outputs/my" / name, chat=name == "ppo")
    world = tmp_path / "outputs/my/world"
    world.mkdir()
    rows = (f'{{"prompt": "{first} {second}"}}' for first in "abcdef" for second in "ghi")
    (world / "prompts_train.jsonl").write_text("\n".join(rows))

    def labelled(*_: Any, **__: Any) -> None:
        with FeedbackStore() as store:
            for name in ("ana", "bo"):
                while (task := store.next_task(name)) is not None:
                    store.record(name, task.id, Answer("choice", int(len(task.texts[0]) > len(task.texts[1])), 2))

    monkeypatch.setattr(serving.uvicorn.Server, "run", labelled)
    return tmp_path


def test_the_walk_leads_from_prompts_to_a_second_round(folder, capsys):
    ran = []
    for line in "".join(blocks("bash")).splitlines():
        command, *words = shlex.split(line, comments=True)
        if command == "rlhf-train":  # tests/test_readme.py composes and checks it
            (run_dir,) = (word.partition("=")[2] for word in words if word.startswith("run_dir="))
            write_model(folder / run_dir, classifier=run_dir.endswith("reward2"))
        elif command in RUN:
            port = ["port=0"] if command == "rlhf-label" else []
            RUN[command](compose_config(command.removeprefix("rlhf-"), [*words, *port]))
            ran.append(command)
    assert ran == ["rlhf-collect", "rlhf-label", "rlhf-agreement", "rlhf-collect", "rlhf-label"]
    assert (folder / "outputs/labels/preferences.jsonl").read_text().count("\n") > 10
    with FeedbackStore() as store:
        assert {response.source for task in store.tasks() for response in task.responses} == {"sft", "ppo", "dpo2"}
        judged = {judgement.task for judgement in store.judgements()}
        assert judged == {task.id for task in store.tasks()}
    assert "by name" not in capsys.readouterr().err


def test_the_python_of_the_page_runs(folder):
    names: dict[str, Any] = {}
    examples = blocks("python")
    assert examples
    for example in examples:
        exec(example, names)
    assert names["done"].sampled == 4
    names["store"].close()
