"""The functions of docs/rewards.md are rewards; `test_readme.py` checks its commands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rlhf_lightning.rewards import FunctionReward

PAGE = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text(encoding="utf-8")


def test_every_function_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_rewards.py").write_text("\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)))
    monkeypatch.chdir(tmp_path)
    talk = [[{"role": "user", "content": "2 + 2?"}]]
    assert FunctionReward("my_rewards.right")(["p"], ["It is 4"], messages=talk, ground_truth=[4]) == [1.0]
    assert FunctionReward("my_rewards.for_code_only")(["p", "q"], ["ab", "c"], task=["code", "text"]) == [2.0, 0.0]
    assert FunctionReward("my_rewards.asked")(["p", "q"], ["ab", "c"]) == [2.0, 1.0]
    assert FunctionReward("my_rewards.short_and_polite")(["p"], ["please"]) == [0.94]
