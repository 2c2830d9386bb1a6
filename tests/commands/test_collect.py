"""rlhf-collect: what it adds, what it prints, and that a second call adds nothing."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import time
from pathlib import Path

import pytest

from rlhf_lightning.commands import collect
from rlhf_lightning.commands.composition import compose_config
from rlhf_lightning.environment import typed
from rlhf_lightning.feedback import FeedbackStore
from rlhf_lightning.guide.pages import page
from tests.commands.runs import write_model
from tests.programs import ENVIRONMENT, program

ROOT = Path(__file__).resolve().parents[2]


def run(*words: str) -> None:
    collect.collect(compose_config("collect", list(words)))


def test_prompts_are_sampled_once_and_explained_before(empty_folder, capsys):
    write_model(Path("old/model"))
    Path("prompts.jsonl").write_text('{"prompt": "a b"}\n{"prompt": "c d"}\n{"prompt": "a b"}\n')
    Path("known.jsonl").write_text('{"prompt": "z", "chosen": "right", "rejected": "wrong"}\n')
    words = ["prompts=prompts.jsonl", "policies={old: old}", "max_new_tokens=5", "checks=known.jsonl"]
    run(*words, "explain=true")
    said = capsys.readouterr().out.splitlines()
    assert said == ["2 prompts of prompts.jsonl, 1 repeated", "old: 4 responses to sample, 0 there"]
    assert not Path("outputs").exists()
    run(*words)
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "sampled: 4 responses to 2 prompts; 0 already there",
        "tasks: 3 new in sqlite:///outputs/feedback.db; 0 already there",
        f"next: {typed('rlhf-label')} labelers=[ana,bo]",
    ]
    run(*words)
    assert capsys.readouterr().out.splitlines()[:2] == [
        "sampled: 0 responses to 2 prompts; 4 already there",
        "tasks: 0 new in sqlite:///outputs/feedback.db; 3 already there",
    ]
    run(*words, "explain=true")
    assert capsys.readouterr().out.splitlines()[1] == "old: 0 responses to sample, 4 there"


def test_responses_of_a_file_are_ranked_by_an_ensemble(empty_folder, capsys):
    for name in ("one", "two"):
        write_model(Path(name), classifier=True)
    rows = [{"prompt": f"{a} b", "responses": ["c d", "e", "f g h"], "sources": ["x", "y", "z"]} for a in "klm"]
    Path("given.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run(
        "responses=given.jsonl",
        "choice=uncertain",
        "reward.model=[one,two]",
        "max_tasks=2",
        "feedback.store=sqlite:///f.db",
    )
    assert capsys.readouterr().out.splitlines()[:2] == [
        "read: 9 responses to 3 prompts",
        "tasks: 2 new in sqlite:///f.db; 0 already there",
    ]
    with FeedbackStore("sqlite:///f.db") as store:
        assert all(len(response.scores) == 2 for task in store.tasks() for response in task.responses)


@pytest.mark.parametrize("command", ["collect", "label"])
def test_the_page_of_help_names_every_key(command):
    config = compose_config(command, [])
    for name, value in config.items():
        keys = [f"{name}.{inner}" for inner in value] if isinstance(value, dict) else [name]
        assert all(key in page(f"rlhf-{command}") for key in keys), keys


@pytest.mark.slow
def test_a_killed_collection_goes_on_and_samples_nothing_twice(empty_folder, capsys):
    write_model(Path("old"))
    Path("prompts.jsonl").write_text("".join(f'{{"prompt": "{a} {b}"}}\n' for a in "abcdefghij" for b in "klmnopqrst"))
    words = ["prompts=prompts.jsonl", "policies={old: old}", "max_new_tokens=30", "batch_size=1"]
    environment = {**os.environ, **ENVIRONMENT}
    with subprocess.Popen(
        [program("rlhf-collect"), *words, "feedback.store=sqlite:///f.db"], env=environment
    ) as process:
        while not Path("f.db").exists() or not kept("f.db"):
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
    there = kept("f.db")
    assert 0 < there < 100
    run(*words, "feedback.store=sqlite:///f.db")
    assert (
        f"sampled: {2 * (100 - there)} responses to 100 prompts; {2 * there} already there" in capsys.readouterr().out
    )
    run(*words, "feedback.store=sqlite:///whole.db")
    with FeedbackStore("sqlite:///f.db") as resumed, FeedbackStore("sqlite:///whole.db") as whole:
        assert list(resumed.tasks()) == list(whole.tasks())


def kept(file: str) -> int:
    """Return how many prompts have responses; 0 until the tables exist."""
    with contextlib.closing(sqlite3.connect(file)) as connection, contextlib.suppress(sqlite3.OperationalError):
        return int(connection.execute("SELECT count(*) FROM samples").fetchone()[0])
    return 0
