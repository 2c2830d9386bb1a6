from __future__ import annotations

import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.normalizers import Prepend, Replace
from tokenizers.normalizers import Sequence as Normalizers
from transformers import PreTrainedTokenizerFast

from rlhf_lightning.data import render_completion, render_prompt, tokenize_completions, tokenize_prompt
from rlhf_lightning.data.tokenization import truncate, truncate_prompt
from tests.data.conftest import MARKED_TEMPLATE, PLAIN_TEMPLATE, assistant, build_tokenizer, user

EOS, BOS = 2, 1


def tokenize_completion(tokenizer, prompt, completion, ended: bool = True) -> tuple[list[int], list[int]]:
    return tokenize_completions(tokenizer, [prompt], [completion], [ended])[0]


def test_rows_that_ended_and_rows_that_were_cut_off_keep_their_order(tokenizer: PreTrainedTokenizerFast) -> None:
    ended = [True, False, True, False]
    rows = tokenize_completions(tokenizer, ["a", "b", "c", "d"], ["d", "c", "b", "a"], ended)
    assert rows == [tokenize_completion(tokenizer, *row) for row in zip("abcd", "dcba", ended, strict=True)]
    assert [completion[-1] == EOS for _, completion in rows] == ended


def tokens(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> list[str]:
    return tokenizer.convert_ids_to_tokens(ids)


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("eos_after", [True, False])
def test_a_plain_prompt_gets_what_the_tokenizer_puts_before_it_and_nothing_after(bos: bool, eos_after: bool) -> None:
    tokenizer = build_tokenizer(bos=bos, eos_after=eos_after)
    assert tokens(tokenizer, tokenize_prompt(tokenizer, "a b")) == (["<bos>"] if bos else []) + ["a", "b"]


@pytest.mark.parametrize("text", ["a b", "<bos>a b", "<bos> a b"])
def test_a_prompt_has_at_most_one_bos(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokens(tokenizer, tokenize_prompt(tokenizer, text)) == ["<bos>", "a", "b"]


@pytest.mark.parametrize("template", [PLAIN_TEMPLATE, MARKED_TEMPLATE, PLAIN_TEMPLATE.replace("{{ bos_token }}", "")])
@pytest.mark.parametrize("bos", [True, False])
def test_template_text_is_tokenised_as_the_template_would(template: str, bos: bool) -> None:
    tokenizer = build_tokenizer(bos=bos, template=template)
    prompt, answer = [user("a b"), assistant("c"), user("d")], [assistant("e f")]
    expected = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=True)["input_ids"]
    prompt_ids = tokenize_prompt(tokenizer, prompt)
    assert prompt_ids == expected
    assert prompt_ids.count(BOS) == int("bos_token" in template)

    whole = tokenizer.apply_chat_template(prompt + answer, tokenize=True)["input_ids"]
    before, after = tokenize_completion(tokenizer, prompt, answer)
    assert before == prompt_ids
    assert before + after == whole
    assert after.count(EOS) == 1


@pytest.mark.parametrize("pad_is_eos", [True, False])
@pytest.mark.parametrize("text", ["c d", "c d<eos>", "c d <eos> ", "c d<eos>\n<eos>"])
def test_an_ended_answer_has_one_eos_at_its_end(pad_is_eos: bool, text: str) -> None:
    tokenizer = build_tokenizer(pad_is_eos=pad_is_eos)
    _, completion = tokenize_completion(tokenizer, "a b", text)
    assert tokens(tokenizer, completion) == ["c", "d", "<eos>"]
    _, cut = tokenize_completion(tokenizer, "a b", text, ended=False)
    assert tokens(tokenizer, cut) == ["c", "d"]


def test_scoring_a_rollout_sees_what_training_saw(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    prompt = [user("a b")]
    row = tokenize_completion(chat_tokenizer, prompt, [assistant("c d")])
    assert tokenize_completion(chat_tokenizer, prompt, "c d") == row
    assert tokenize_completion(chat_tokenizer, prompt, "c d", ended=False) == (row[0], row[1][:-1])
    shown, answer = render_prompt(chat_tokenizer, prompt), render_completion(chat_tokenizer, prompt, "c d")
    assert tokenize_completion(chat_tokenizer, shown, answer) == row  # also from the rendered text


def test_the_prompts_ids_are_those_that_generation_starts_from(tokenizer: PreTrainedTokenizerFast) -> None:
    # "b" and "c" are adjacent: together they would be the unknown word "bc".
    prompt, completion = tokenize_completion(tokenizer, "a b", "c d")
    assert prompt == tokenize_prompt(tokenizer, "a b")
    assert tokens(tokenizer, completion) == ["c", "d", "<eos>"]


def test_an_unknown_last_word_does_not_swallow_the_answers_first(tokenizer: PreTrainedTokenizerFast) -> None:
    prompt, completion = tokenize_completion(tokenizer, "a qq", "c d")  # "qqc" is as unknown as "qq"
    assert tokens(tokenizer, prompt) == ["<bos>", "a", "<unk>"]
    assert tokens(tokenizer, completion) == ["c", "d", "<eos>"]


def test_an_answer_is_tokenised_in_context_where_a_lone_text_would_get_a_space() -> None:
    """As in Llama's tokenizer, a space goes before a text, so " b" alone would start with two."""
    vocabulary = {piece: i for i, piece in enumerate(["<unk>", "<bos>", "<eos>", "▁", "a", "b", "▁a", "▁b"])}
    backend = Tokenizer(BPE(vocabulary, [("▁", "a"), ("▁", "b")], unk_token="<unk>"))
    backend.normalizer = Normalizers([Prepend("▁"), Replace(" ", "▁")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token="<eos>")
    prompt, completion = tokenize_completion(tokenizer, "a", " b")
    assert tokens(tokenizer, prompt) == ["▁a"]
    assert tokens(tokenizer, completion) == ["▁b", "<eos>"]
    assert tokens(tokenizer, tokenize_completion(tokenizer, "", "a b")[1]) == ["▁a", "▁b", "<eos>"]


def test_a_truncated_prompt_keeps_its_end_and_its_bos(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokens(tokenizer, tokenize_prompt(tokenizer, "a b c d", max_length=3)) == ["<bos>", "c", "d"]
    assert truncate_prompt([5, 6, 7], 2, bos_id=1) == [6, 7]
    assert truncate_prompt([5, 6, 7], 2, bos_id=None) == [6, 7]
    assert truncate_prompt([1, 6, 7], 1, bos_id=1) == [7]
    assert truncate_prompt([1, 6, 7], 3, bos_id=1) == [1, 6, 7]


def test_truncation_keeps_the_end_of_the_prompt_and_the_start_of_the_answer() -> None:
    prompt, answers = truncate([10, 11, 12, 13, 14], [[20, 21, 22, 23, 24, EOS], [30, EOS]], max_length=6)
    assert prompt == [12, 13, 14]  # half of it
    assert answers == [[20, 21, 22], [30, EOS]]  # the truncated one has no EOS; both follow one prompt


def test_a_prompt_gives_way_before_a_short_answer_does() -> None:
    assert truncate(list(range(10, 20)), [[20, EOS]], max_length=6) == ([16, 17, 18, 19], [[20, EOS]])


def test_max_prompt_length_comes_first() -> None:
    assert truncate([10, 11, 12], [[20, 21, 22]], max_length=5, max_prompt_length=2) == ([11, 12], [[20, 21, 22]])
    assert truncate([10, 11, 12], [[20]], max_length=None, max_prompt_length=1) == ([12], [[20]])
