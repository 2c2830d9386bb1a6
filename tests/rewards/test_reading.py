"""What a reward model reads of a policy's samples: the ids themselves, or text with the same content."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from rlhf_lightning.data import PromptDataModule, PromptRow, tokenize_completions
from rlhf_lightning.data.decoding import decode_exactly
from rlhf_lightning.errors import UserError
from rlhf_lightning.rewards import ModelReward, SampledTokens, WeightedSum, score_samples
from rlhf_lightning.rewards.reading import reads_the_same
from tests.subwords import KINDS, TEXT, subword_tokenizer
from tests.tiny import tiny_model, tiny_tokenizer, write_reward_model

CHAT = (  # the end of a turn is not the EOS
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TRIMMING = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %} {{ m['content'] | trim }} {{ eos_token }}"
    "{% else %}[INST] {{ m['content'] | trim }} [/INST]{% endif %}{% endfor %}"
)


def save(folder: Path, tokenizer: Any, family: str = "llama") -> ModelReward:
    write_reward_model(folder, tiny_model(family, vocab_size=len(tokenizer)))
    tokenizer.save_pretrained(folder)
    return ModelReward(folder)


def other(kind: str = "byte_level") -> Any:
    return subword_tokenizer(kind, text=TEXT[:1], size=340)


def read(reward: ModelReward, policy: Any, rows: list[PromptRow], responses: list[list[int]]) -> list[list[int]]:
    """Return the rows that reach the network."""
    seen: list[list[int]] = []

    def spy(rows: list[list[int]]) -> Any:
        seen.extend(rows)
        return type(reward)._score(reward, rows)

    reward._score, reward.batch_size = spy, 1  # type: ignore[method-assign]
    by_row = []
    for row, ids in zip(rows, responses, strict=True):
        score_samples(reward, policy, [row], [ids], [ids[-1] in (2, 4)])
        by_row.append(seen.pop())
    return by_row


def prompts(tokenizer: Any, rows: list[dict[str, Any]], **options: Any) -> list[PromptRow]:
    data = PromptDataModule(tokenizer, rows, **options)
    data.setup()
    return data.train_prompts


def test_sampled_ids_are_scored_where_the_tokenizers_are_equal(tmp_path: Path) -> None:
    """Also ids that no text would produce again, such as two halves of a word."""
    policy = subword_tokenizer("prepend")
    reward = save(tmp_path, subword_tokenizer("prepend"))
    (row,) = prompts(policy, [{"prompt": "Tom and Sam"}])
    halves = policy.convert_tokens_to_ids(["▁", "w", "e", "r", "e"])
    assert read(reward, policy, [row] * 2, [[*halves, 2], halves]) == [
        [*row.input_ids, *halves, 2],
        [*row.input_ids, *halves],
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_both_ways_of_reading_agree_on_what_a_tokenizer_writes_itself(kind: str, tmp_path: Path) -> None:
    policy = subword_tokenizer(kind)
    reward = save(tmp_path, policy)
    rows = prompts(policy, [{"prompt": text} for text in ("tom and sam", "one day they")])
    said = [" were two friends .", " played with a ball"]
    ids = [
        answer + [2] * end
        for (_, answer), end in zip(
            tokenize_completions(policy, [row.text for row in rows], said, [False, False]), (True, False), strict=True
        )
    ]
    ended = [True, False]
    columns: dict[str, Any] = {"sampled": SampledTokens(policy, [row.input_ids for row in rows], ids)}
    texts = [row.text for row in rows]
    assert reward.rows(texts, said, ended, columns) == reward.rows(texts, said, ended, {})
    assert reward(texts, said, ended=ended, **columns) == reward(texts, said, ended=ended)


def test_another_tokenizer_reads_the_text_that_was_sampled(tmp_path: Path) -> None:
    policy, own = subword_tokenizer("prepend"), other()
    reward = save(tmp_path, own)
    (row,) = prompts(policy, [{"prompt": "Tom and Sam"}])
    for tokens in (["▁were", "▁", "re"], ["w", "e"], ["▁w", "<|im_start|>", "ere"]):
        (ids,) = read(reward, policy, [row], [policy.convert_tokens_to_ids(tokens)])
        written = "".join(tokens).replace("▁", " ")
        assert decode_exactly(own, ids) == "<s>Tom and Sam" + written


def test_tokenizers_are_compared_by_all_that_makes_ids() -> None:
    first = subword_tokenizer("prepend")
    assert reads_the_same(first, subword_tokenizer("prepend"), templated=False)
    merges = subword_tokenizer("prepend")
    changed = json.loads(merges.backend_tokenizer.to_str())
    changed["model"]["merges"] = changed["model"]["merges"][::-1]
    merges._tokenizer = Tokenizer.from_str(json.dumps(changed))
    assert merges.get_vocab() == first.get_vocab()
    assert not reads_the_same(first, merges, templated=False)
    assert not reads_the_same(first, subword_tokenizer("prepend", bos=False), templated=False)
    assert not reads_the_same(first, subword_tokenizer("metaspace_first"), templated=False)
    renamed = subword_tokenizer("prepend")
    renamed.eos_token = "<|im_end|>"
    assert not reads_the_same(first, renamed, templated=False)
    chat = subword_tokenizer("prepend")
    chat.chat_template = CHAT
    assert reads_the_same(first, chat, templated=False)
    assert not reads_the_same(first, chat, templated=True)


def test_an_ended_answer_ends_as_in_the_reward_models_training(tmp_path: Path) -> None:
    """The policy may stop at the end of a turn, which is not the tokenizer's EOS."""
    policy = subword_tokenizer("byte_level")
    policy.chat_template = CHAT
    reward = save(tmp_path, policy)
    asked = [{"role": "user", "content": "Tom"}]
    (row,) = prompts(policy, [{"prompt": asked}])
    ((_, trained),) = tokenize_completions(policy, [asked], [[{"role": "assistant", "content": "were two"}]], [True])
    said = policy("were two", add_special_tokens=False)["input_ids"]
    assert trained[: len(said)] == said
    at_end_of_turn, at_eos = [*said, 4], trained
    assert read(reward, policy, [row] * 2, [at_end_of_turn, at_eos]) == [[*row.input_ids, *trained]] * 2
    assert read(reward, policy, [row], [[*said, 2]]) == [[*row.input_ids, *said, 2]]  # as it was sampled


def test_what_a_template_writes_around_an_answer_is_not_written_twice(tmp_path: Path) -> None:
    policy, own = subword_tokenizer("prepend"), other()
    policy.chat_template, own.chat_template = TRIMMING, CHAT
    reward = save(tmp_path, own)
    asked = [{"role": "user", "content": "Tom"}]
    (row,) = prompts(policy, [{"prompt": asked}])
    ((_, said),) = tokenize_completions(policy, [asked], ["were two"], [True])
    (ids,) = read(reward, policy, [row], [said])
    assert decode_exactly(own, ids) == (
        "<|im_start|>user\nTom<|im_end|>\n<|im_start|>assistant\nwere two<|im_end|>\n</s>"
    )


@pytest.mark.parametrize("same", [True, False])
def test_the_prompt_is_the_one_that_was_answered(same: bool, tmp_path: Path) -> None:
    policy = subword_tokenizer("byte_level")
    policy.chat_template = CHAT
    own = policy if same else other("prepend")
    own.chat_template = CHAT
    reward = save(tmp_path, own)
    talk = [
        {"role": "user", "content": "Once upon a time"},
        {"role": "assistant", "content": "there were two friends"},
        {"role": "user", "content": "who were they"},
    ]
    whole = len(prompts(policy, [{"prompt": talk}])[0].input_ids)
    plain, cut = prompts(policy, [{"prompt": "Once upon a time " * 5}, {"prompt": talk}], max_prompt_length=16)
    answer = policy(" Tom", add_special_tokens=False)["input_ids"]
    first, second = (
        decode_exactly(own, ids[ids[0] == 1 :]) for ids in read(reward, policy, [plain, cut], [answer, answer])
    )
    assert whole > len(cut.input_ids) == 16 == len(plain.input_ids)
    assert first == f"{plain.text} Tom" and first.count("Once") < 5
    assert "upon" not in second and "they" in second and second.endswith("assistant\n Tom")


def test_prompts_beyond_the_positions_keep_their_end_and_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = tiny_tokenizer()
    reward = save(tmp_path, tokenizer, "gpt2")
    with caplog.at_level(logging.WARNING):
        ids = read(reward, tokenizer, [PromptRow([3] * 150 + [4], "", {})], [[5, 6]])
    assert ids == [[3] * 125 + [4, 5, 6]]
    assert reward.truncated == 1
    assert "fewer positions (128)" in caplog.text
    with pytest.raises(UserError, match=r"a response has 128 tokens, and .* has 128 positions"):
        reward(["a"], [" b" * 127])
    with pytest.raises(UserError, match=r"rollout\.max_new_tokens: found 128"):
        reward.check_length(128)


def test_a_token_without_an_embedding_is_one_line(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["new"])
    write_reward_model(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"reward\.model: the tokenizer's token 'new' has the id 29, and the model has"):
        ModelReward(tmp_path)(["a"], ["new"])


def test_functions_get_texts_and_no_tokens_also_as_parts(tmp_path: Path) -> None:
    seen: list[set[str]] = []

    def function(prompts: list[str], responses: list[str], **columns: Any) -> list[float]:
        seen.append(set(columns))
        return [0.0] * len(responses)

    tokenizer = tiny_tokenizer()
    row = PromptRow([3], "a", {"answer": "b"})
    both = WeightedSum({"f": function, "m": save(tmp_path, tokenizer)}, {"f": 1.0, "m": 1.0})
    for reward in (function, both):
        score_samples(reward, tokenizer, [row], [[4, 1]], [True])
    assert seen == [{"answer", "ended"}] * 2
