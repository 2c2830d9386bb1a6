"""Rewards for worded arithmetic: one for the format of an answer, one for its number. Copy it and change it.

    python gsm8k_rewards.py gsm8k.jsonl gsm8k_prompts.jsonl      # puts the instruction before each question
    rlhf-train experiment=grpo data.train=gsm8k_prompts.jsonl model.path=... model/adapter=lora \
      'reward.components.format={function: gsm8k_rewards.well_formed, weight: 0.5}' \
      'reward.components.answer={function: gsm8k_rewards.right, weight: 1}'

Rows have `prompt` (a list of messages) and `answer` (the number). A reward function gets every column of the rows by
its name, and `ended`: whether each response came to an end by itself.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

INSTRUCTION = (
    "Answer with a short calculation, then with the number on a line of its own, like this:\n"
    "3 * 4 = 12 apples, 12 - 2 = 10 apples.\n#### 10"
)
_LAST_LINE = re.compile(r"^#### *(-?\$?[\d,]*\.?\d+)\.?$")


def number_of(response: str) -> float | None:
    """Return the number of a response that reasons and then ends with a line `#### number`; None for any other.

    >>> number_of("48 / 2 = 24, and 48 + 24 = 72.\\n#### 72"), number_of("#### 72"), number_of("It is 72.")
    (72.0, None, None)
    """
    *reasoning, last = response.strip().splitlines() or [""]
    found = _LAST_LINE.match(last.strip())
    if found is None or not "".join(reasoning).strip() or response.count("####") > 1:
        return None
    return float(found[1].replace(",", "").replace("$", ""))


def well_formed(prompts: list[str], responses: list[str], **columns: Any) -> list[float]:
    """1 for a response that reasons, ends with `#### number`, and stops there; 0 for any other."""
    return [
        float(ended and number_of(each) is not None) for each, ended in zip(responses, columns["ended"], strict=True)
    ]


def right(prompts: list[str], responses: list[str], **columns: Any) -> list[float]:
    """1 for a well-formed response whose number is the row's `answer`; 0 for any other."""
    return [
        float(ended and number_of(each) == float(known.replace(",", "")))
        for each, ended, known in zip(responses, columns["ended"], columns["answer"], strict=True)
    ]


def write_prompts(source: Path, target: Path, longest: int = 140) -> int:
    """Write the rows whose question has at most this many characters, the instruction first; return their number."""
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    kept = [
        {"prompt": [{"role": "system", "content": INSTRUCTION}, *row["prompt"]], "answer": row["answer"]}
        for row in rows
        if len(row["prompt"][-1]["content"]) <= longest
    ]
    target.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept), encoding="utf-8")
    return len(kept)


if __name__ == "__main__":
    print(write_prompts(Path(sys.argv[1]), Path(sys.argv[2])), "prompts")
