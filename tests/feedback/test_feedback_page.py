"""The Python of docs/feedback.md runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import uvicorn

DOCS = Path(__file__).resolve().parents[2] / "docs" / "feedback.md"


def test_the_examples_of_the_page_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    served = []
    monkeypatch.setattr(uvicorn, "run", lambda app, **settings: served.append(settings))
    examples = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert len(examples) == 5
    names: dict[str, object] = {}
    for example in examples:
        exec(example, names)
    assert served == [{"host": "127.0.0.1", "port": 8000}]
    assert capsys.readouterr().out.count("/enter/") == 2
    assert (tmp_path / "outputs" / "labels" / "preferences_test.jsonl").is_file()
    names["store"].close()
