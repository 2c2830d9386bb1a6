"""What rlhf-evaluate leaves of an earlier evaluation when it fails, and what it says before it samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlhf_lightning.commands import evaluate
from rlhf_lightning.commands.composition import compose_config
from rlhf_lightning.errors import UserError
from tests.commands.runs import write_model


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
