"""A local model as a judge: its numbers are those of a plain forward pass, whatever the batch."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_lightning.errors import UserError
from rlhf_lightning.judging.comparing import Comparison, as_text
from rlhf_lightning.judging.judge import make_judge
from rlhf_lightning.judging.local import LEAD, LocalJudge
from rlhf_lightning.judging.rating import RATINGS
from tests.judges import write_judge
from tests.tiny import tiny_model, tiny_tokenizer

QUESTIONS = ["a b c", "d", "e f g h i j k l m n", "o p"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_judge(tmp_path_factory.mktemp("judge") / "model")


def plain(folder, question, verdict):
    """Return log p of the verdict after the question and the lead, in one row without padding."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(f"{question}\n\n{LEAD} {verdict}", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logprobs = torch.log_softmax(model(ids).logits[0, -2], dim=-1)
    return float(logprobs[ids[0, -1]])


@pytest.mark.parametrize("batch_size", [1, 3])
def test_log_probabilities_are_those_of_a_plain_forward_pass(folder, batch_size):
    found = LocalJudge(folder, batch_size=batch_size).logprobs(QUESTIONS)
    for question, pair in zip(QUESTIONS, found, strict=True):
        assert pair == pytest.approx([plain(folder, question, verdict) for verdict in "AB"], abs=1e-5)


def test_generated_text_is_the_most_likely_continuation(folder):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    found = LocalJudge(folder, batch_size=2, max_new_tokens=5).generate(QUESTIONS)
    for question, text in zip(QUESTIONS, found, strict=True):
        ids = tokenizer(f"{question}\n\n", return_tensors="pt")["input_ids"]
        whole = model.generate(ids, max_new_tokens=5, do_sample=False)
        assert text == tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True).strip()


def test_what_was_asked_is_known_to_the_next_judge_of_the_same_model(folder, tmp_path):
    settings = {"batch_size": 2, "cache": tmp_path / "cache.db"}
    first, second = LocalJudge(folder, **settings), LocalJudge(folder, **settings)
    found = first.logprobs(QUESTIONS[:3])
    assert second.logprobs([*QUESTIONS[:3], QUESTIONS[0]]) == [*found, found[0]]
    assert (first.usage.requests, second.usage.requests, second.usage.cached) == (3, 0, 4)
    assert "model" not in second.__dict__  # it was not even loaded
    second.logprobs(QUESTIONS[:1], RATINGS)
    second.generate(QUESTIONS[:1])
    assert second.usage.requests == 2
    other = write_judge(tmp_path / "other", positions=256)
    assert LocalJudge(other, **settings).logprobs(QUESTIONS[:1]) and LocalJudge(other, **settings).usage.requests == 0


def test_a_question_that_is_too_long_has_no_answer(tmp_path):
    judge = LocalJudge(write_judge(tmp_path / "short", positions=12), max_new_tokens=4)
    assert [each is None for each in judge.logprobs(QUESTIONS)] == [False, False, True, False]
    assert [each is None for each in judge.generate(QUESTIONS)] == [False, False, True, False]


def test_a_tokenizer_without_the_verdicts_is_refused(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"judge\.model: the tokenizer .* no single token .* A, B; .*judge\.by=reasons"):
        LocalJudge(tmp_path).logprobs(["a"])


def test_a_judge_from_settings_compares_rates_and_revises(folder, tmp_path):
    principles = tmp_path / "mine.yaml"
    principles.write_text("- a b c\n")
    judge = make_judge({"model": str(folder), "cache": None, "constitution": str(principles), "max_new_tokens": 6})
    (found,) = judge.compare([Comparison([{"role": "user", "content": "a"}], "b", "c")])
    assert found.principle == "a b c" and 0 < found.probability < 1
    assert found.probability == pytest.approx((found.as_shown + found.swapped) / 2)
    (turned,) = judge.compare([Comparison([{"role": "user", "content": "a"}], "c", "b")])
    assert turned.probability == pytest.approx(1 - found.probability)
    scores = judge.rate(["a", "a"], ["b", "c d"])
    assert all(-1 < score < 1 for score in scores) and scores[0] != scores[1]
    (chain,) = judge.revise(["a"], ["b"], rounds=2)
    assert chain is not None and len(chain.steps) == 2 and chain.row()["completion"] == chain.steps[1].revision
    assert as_text([{"role": "user", "content": "a"}]) == "user: a"


def test_a_model_with_a_chat_template_is_asked_through_it(folder, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = (
        "{% for m in messages %}u {{ m.content }} {% endfor %}{% if add_generation_prompt %}v {% endif %}"
    )
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    judge = LocalJudge(tmp_path)
    assert judge._rendered("a b") == "u a b v "
    assert math.isfinite(judge.logprobs(["a b"])[0][0])
