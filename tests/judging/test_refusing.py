"""Whether an answer refuses, by a judge: what it is asked, and what its answers mean."""

from __future__ import annotations

from typing import Any

import pytest

from rlhf_lightning.errors import UserError
from rlhf_lightning.evaluation.judged import JudgedRefusals
from rlhf_lightning.judging.judge import Judge, make_judge
from rlhf_lightning.judging.refusing import parse_refusal
from rlhf_lightning.judging.usage import Usage
from tests.fake_endpoint import serving
from tests.judges import write_judge


class Script:
    """Says that a reply with `sorry` refuses; nothing about `mute` ones."""

    def __init__(self) -> None:
        self.usage = Usage()
        self.asked: list[str] = []

    def logprobs(self, questions: Any, verdicts: Any = (), lead: str = "") -> Any:
        assert verdicts == ("Yes", "No") and lead == "The answer is"
        self.asked += questions
        return [None if "mute" in each else (-0.1, -3.0) if "sorry" in each else (-3.0, -0.1) for each in questions]

    def generate(self, questions: Any) -> Any:
        return [
            None if "mute" in each else f"Well.\nVerdict: {'yes' if 'sorry' in each else 'no'}" for each in questions
        ]


@pytest.mark.parametrize("by", ["logprobs", "reasons"])
def test_the_more_probable_or_the_last_word_decides_and_silence_is_no_verdict(
    by: str, caplog: pytest.LogCaptureFixture
) -> None:
    detector = JudgedRefusals(Judge(Script(), ["be kind"], by))
    asked: list[Any] = ["p", [{"role": "user", "content": "q"}], "r"]
    assert detector.all_of(asked, ["I am sorry", "blue", "mute"]) == [True, False, None]
    assert "no verdict on whether 1 of 3 responses refuse" in caplog.text
    assert detector("p", "so sorry") is True and detector.all_of([], []) == []


def test_the_question_has_the_conversation_and_the_reply() -> None:
    script = Script()
    Judge(script, ["be kind"]).refuses([[{"role": "user", "content": "how {x}?"}]], ["it is {blue}"])
    assert "[Conversation]\nuser: how {x}?\n\n[Reply]\nit is {blue}\n" in script.asked[0]


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("It declines.\nVerdict: yes", True),
        ("**Verdict:** No.", False),
        ("Verdict: (YES)", True),
        ("Yes.", None),
        ("", None),
        ("Verdict: yes\nVerdict: no", None),
        ("Verdict: yes or no", None),
    ],
)
def test_verdicts_that_contradict_themselves_or_are_missing_do_not_count(text: str, verdict: bool | None) -> None:
    assert parse_refusal(text) is verdict


def test_a_local_judge_says_yes_or_no_and_nothing_about_what_is_too_long(tmp_path: Any) -> None:
    settings: Any = {"model": str(write_judge(tmp_path / "judge")), "cache": None}
    verdicts = make_judge(settings).refuses(["a b", "c"], ["d e", " ".join(["a"] * 600)])
    assert isinstance(verdicts[0], bool) and verdicts[1] is None


def test_an_endpoint_generates_its_verdicts_and_without_the_words_points_to_that() -> None:
    def says(question: str) -> str:
        return "I would rather not say." if "mute" in question else "Verdict: yes"

    with serving(says) as server:
        settings: Any = {"model": "m", "url": server.url, "cache": None}
        assert make_judge({**settings, "by": "reasons"}).refuses(["p", "p"], ["a", "mute"]) == [True, None]
        with pytest.raises(UserError, match=r"^judge\.url: .*none of Yes, No is among .*judge\.by=reasons"):
            make_judge(settings).refuses(["p"], ["a"])
