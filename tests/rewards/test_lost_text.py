"""What a reward model's tokenizer cannot read of a policy's text is counted and reported."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from rlhf_lightning.data import PromptDataModule
from rlhf_lightning.rewards import ModelReward, score_samples
from tests.subwords import KINDS, subword_tokenizer
from tests.tiny import tiny_model, tiny_tokenizer, write_reward_model

CHAT = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"
HARD = "  naïve “quotes” 你好 \N{GRINNING FACE}\n\n\tI do not know; don't <|im_start|> </s> \N{REPLACEMENT CHARACTER}"


def saved(folder: Path, tokenizer: Any) -> ModelReward:
    write_reward_model(folder, tiny_model(vocab_size=len(tokenizer)))
    tokenizer.save_pretrained(folder)
    return ModelReward(folder)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "reward.model" in record.getMessage()]


def test_unknown_tokens_are_counted_and_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    policy, reward = subword_tokenizer("byte_level"), saved(tmp_path, tiny_tokenizer())
    data = PromptDataModule(policy, [{"prompt": "a b"}, {"prompt": "c"}, {"prompt": "d"}])
    data.setup()
    rows = data.train_prompts
    ids = [policy(text, add_special_tokens=False)["input_ids"] for text in (" d 你好", " e f", " g")]
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            score_samples(reward, policy, rows, ids, [False] * 3)
    (said,) = warnings(caplog)
    assert f"the tokenizer of {tmp_path} cannot read 1 of 3 rows as they are, such as '你好', which it reads" in said
    assert "'<unk>'" in said and "\n" not in said
    assert (reward.lost_text.lost, reward.lost_text.read) == (2, 6)


@pytest.mark.parametrize("templated", [False, True])
def test_a_prompt_that_cannot_be_read_is_said_too(
    templated: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = [*"abc", "user", "assistant"]
    tokenizer = tiny_tokenizer(words=words)
    tokenizer.chat_template = CHAT
    reward = saved(tmp_path, tokenizer)
    for text in ("b c", "b 你好"):
        asked = {"messages": [[{"role": "user", "content": text}]]} if templated else {}
        with caplog.at_level(logging.WARNING):
            reward([text], ["a"], ended=[True], **asked)
        assert len(warnings(caplog)) == (text != "b c")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "word_piece"])
def test_tokenizers_that_read_every_text_lose_none(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    reward = saved(tmp_path, subword_tokenizer(kind))
    with caplog.at_level(logging.WARNING):
        reward([HARD, "Tom", ""], [" were", HARD, HARD], ended=[True, True, False])
    assert not warnings(caplog) and reward.lost_text.lost == 0


def test_what_a_tokenizer_declares_is_said_once_and_is_not_a_loss(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reward = saved(tmp_path, subword_tokenizer("word_piece"))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            reward(["Tom and"], [" SAM  were\ntwo Friends ."], ended=[True])
    (said,) = warnings(caplog)
    assert "lower-cases texts" in said and "accents" not in said
    assert reward.lost_text.lost == 0


def test_the_same_tokenizer_loses_nothing_of_what_was_sampled(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    policy = subword_tokenizer("word_piece")
    reward = saved(tmp_path, policy)
    data = PromptDataModule(policy, [{"prompt": "tom"}])
    data.setup()
    with caplog.at_level(logging.WARNING):
        score_samples(reward, policy, data.train_prompts, [[0, 7, 2]], [True])
    assert not warnings(caplog) and reward.lost_text.read == 0
