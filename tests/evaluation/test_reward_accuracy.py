"""Accuracy of rewards by category, by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlhf_lightning.errors import UserError
from rlhf_lightning.evaluation import flat_accuracies, read_pairs, reward_accuracies, wilson_interval

ROWS = [
    {"prompt": "a", "chosen": "long answer", "rejected": "x", "subset": "chat"},
    {"prompt": "b", "chosen": "x", "rejected": "long answer", "subset": "chat"},
    {"prompt": "c", "chosen": "xy", "rejected": "ab", "subset": "safety"},
    {"prompt": "d", "chosen": "xyz", "rejected": "ab", "subset": "safety"},
]


def longer(prompts: list[str], responses: list[str], **columns: Any) -> list[float]:
    return [float(len(response)) for response in responses]


def written(folder: Path, rows: list[dict[str, Any]]) -> Path:
    file = folder / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def test_the_chosen_answer_has_to_score_higher_and_a_tie_counts_half(tmp_path: Path) -> None:
    table = reward_accuracies({"longer": longer}, read_pairs(written(tmp_path, ROWS)))
    assert {name: (each.pairs, each.share.rate) for name, each in table["longer"].items()} == {
        "chat": (2, 0.5),
        "safety": (2, 0.75),
        "all pairs": (4, 0.625),
    }
    flat = flat_accuracies(table)
    assert (flat["longer.accuracy.safety_low"], flat["longer.accuracy.safety_high"]) == wilson_interval(0.75, 2)
    assert flat["longer.accuracy"] == flat["longer.accuracy_mean_of_categories"] == 0.625


def test_without_categories_there_is_one_row_and_another_column_can_be_named(tmp_path: Path) -> None:
    bare = [{name: value for name, value in row.items() if name != "subset"} for row in ROWS]
    assert {pair.category for pair in read_pairs(written(tmp_path, bare))} == {"all pairs"}
    assert {pair.category for pair in read_pairs(written(tmp_path, bare), "prompt")} == {"a", "b", "c", "d"}
    with pytest.raises(UserError, match=r"category: found topic; .* has the columns chosen, prompt, rejected"):
        read_pairs(written(tmp_path, bare), "topic")


def test_conversations_reach_a_reward_with_their_messages(tmp_path: Path) -> None:
    asked = [{"role": "user", "content": "hello"}]
    row = {"prompt": asked, "chosen": [{"role": "assistant", "content": "yes"}], "rejected": "no"}
    with pytest.raises(UserError, match=r"row 1: chosen and rejected: one is a string"):
        read_pairs(written(tmp_path, [row]))
    seen: list[dict[str, Any]] = []

    def keep(prompts: list[str], responses: list[str], **columns: Any) -> list[float]:
        seen.append({"prompts": prompts, "responses": responses, **columns})
        return longer(prompts, responses)

    row["rejected"] = [{"role": "assistant", "content": "no"}]
    reward_accuracies({"keep": keep}, read_pairs(written(tmp_path, [row])))
    assert seen[0]["prompts"] == ["hello"] * 2 and seen[0]["messages"] == [asked] * 2
    assert seen[0]["responses"] == ["yes", "no"] and seen[0]["ended"] == [True, True]


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ({"prompt": "a"}, "row 1: it has no chosen and rejected"),
        ({**ROWS[0], "prompt": "\ud800"}, "row 1: prompt: .* half of a surrogate pair"),
        ({**ROWS[0], "subset": "\ud800"}, "row 1: subset: .* half of a surrogate pair"),
        ({**ROWS[0], "subset": "all pairs"}, "row 1: subset: found 'all pairs', which is a row of the table itself"),
        ({**ROWS[0], "subset": ["chat"]}, r"row 1: subset: found \['chat'\]; must be the pair's category"),
        ({**ROWS[0], "subset": " "}, "row 1: subset: found ' '; must be the pair's category"),
        (
            {"chosen": [{"role": "user", "content": "a"}, *[{"role": "assistant", "content": "b"}] * 2],
             "rejected": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "c"}]},
            "row 1: an answer of 2 messages",
        ),
    ],
)  # fmt: skip
def test_what_is_no_pair_is_refused(tmp_path: Path, row: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line):
        read_pairs(written(tmp_path, [row]))


def test_a_pair_without_the_category_that_others_have_is_refused(tmp_path: Path) -> None:
    bare = {name: value for name, value in ROWS[1].items() if name != "subset"}
    with pytest.raises(UserError, match=r"pairs\.jsonl, row 2: subset: found nothing; must be the pair's category"):
        read_pairs(written(tmp_path, [ROWS[0], bare]))
    assert [pair.category for pair in read_pairs(written(tmp_path, [{**ROWS[0], "subset": 5}]))] == ["5"]


def test_a_reward_that_returns_too_few_scores_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"rewards\.short: short: returned 1 scores for 8"):
        reward_accuracies({"short": lambda prompts, responses, **_: [1.0]}, read_pairs(written(tmp_path, ROWS)))
