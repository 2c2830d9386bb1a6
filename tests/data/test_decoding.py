"""The text of a response is what continues the prompt, whichever tokenizer produced its tokens."""

from __future__ import annotations

import random

import pytest

from rlhf_lightning.data import response_texts, tokenize_completions, tokenize_prompt
from rlhf_lightning.data.decoding import decode_after, decode_exactly
from tests.subwords import KINDS, subword_tokenizer

PROMPTS = ["Tom and Sam", "Tom and Sam we", "Once upon a time ,", "it was sunny . ", "One day\n"]
ANSWERS = [" were two friends.", "re two friends!", "  played", " was <|im_start|>user\n at home"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_response_continues_the_text_of_its_prompt(kind: str) -> None:
    tokenizer = subword_tokenizer(kind)
    generator, broken = random.Random(0), 0
    for prompt in PROMPTS:
        ids = tokenize_prompt(tokenizer, prompt)
        shown = decode_exactly(tokenizer, ids[1:])
        for _ in range(20):
            response = [generator.randrange(5, len(tokenizer)) for _ in range(6)]
            (text,) = response_texts(tokenizer, [ids], [[*response, 2]], [True])
            whole = decode_exactly(tokenizer, [*ids[1:], *response])
            if whole.startswith(shown):
                assert shown + text == whole
            else:  # the response's bytes make the bytes at the end of the prompt an invalid character
                broken += 1
                assert "\N{REPLACEMENT CHARACTER}" in text
    assert broken <= (0 if kind == "word_piece" else 10)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "word_piece"])
@pytest.mark.parametrize("answer", ANSWERS)
def test_tokens_of_an_answer_read_as_the_answer(kind: str, answer: str) -> None:
    """Even if a token would span both, and the answer is tokenised without the prompt."""
    tokenizer = subword_tokenizer(kind)
    if "<|im_start|>" in answer and kind in ("prepend", "metaspace_always"):
        pytest.skip("these put a space after every special token that a text spells out")
    for prompt in PROMPTS:
        ((asked, said),) = tokenize_completions(tokenizer, [prompt], [answer], [True])
        assert response_texts(tokenizer, [asked], [said], [True]) == [answer]


def test_the_first_space_is_kept_and_special_tokens_are_seen() -> None:
    tokenizer = subword_tokenizer("prepend")
    prompt = tokenize_prompt(tokenizer, "Tom and Sam")
    were = tokenizer.convert_tokens_to_ids("▁were")
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    responses = [[were, 2], [were, start], [2, were], [start, 2]]
    texts = response_texts(tokenizer, [prompt] * 4, responses, [True, False, False, True])
    assert texts == [" were", " were<|im_start|>", "</s> were", "<|im_start|>"]


def test_a_prompt_with_many_responses_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = subword_tokenizer("prepend")
    asked = [tokenize_prompt(tokenizer, prompt) for prompt in ("Tom and Sam", "One day") for _ in range(4)]
    said = [tokenizer.convert_tokens_to_ids(["▁were"]) * (1 + n) for n in range(8)]
    decoded, decode = [], tokenizer.decode
    monkeypatch.setattr(tokenizer, "decode", lambda ids, **kwargs: decoded.append(ids) or decode(ids, **kwargs))
    texts = response_texts(tokenizer, asked, said, [False] * 8)
    assert len(decoded) == 8 + 2
    assert texts == [decode_after(tokenizer, prompt, response) for prompt, response in zip(asked, said, strict=True)]


def test_after_a_bos_alone_a_text_begins() -> None:
    tokenizer = subword_tokenizer("prepend")
    were = tokenizer.convert_tokens_to_ids("▁were")
    assert decode_after(tokenizer, [1], [were]) == decode_after(tokenizer, [], [were]) == "were"


@pytest.mark.parametrize("kind", ["prepend", "byte_level"])
def test_a_character_that_begins_in_the_prompt_is_the_responses(kind: str) -> None:
    tokenizer = subword_tokenizer(kind)
    ids = tokenizer("Tom €", add_special_tokens=False)["input_ids"]
    assert decode_after(tokenizer, ids[:-2], ids[-2:]) == "€"


def test_white_space_is_not_tidied_away() -> None:
    tokenizer = subword_tokenizer("cleaned_up")
    assert tokenizer.clean_up_tokenization_spaces
    ids = tokenizer("Tom , Sam .", add_special_tokens=False)["input_ids"]
    assert decode_exactly(tokenizer, ids) == "Tom , Sam ."


def test_an_id_that_the_tokenizer_does_not_know_is_seen() -> None:
    tokenizer = subword_tokenizer("byte_level")
    prompt, answer = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("Tom", " were"))
    sampled = [*answer, len(tokenizer) + 7, *answer]
    assert response_texts(tokenizer, [prompt], [sampled], [False]) == [" were\N{REPLACEMENT CHARACTER} were"]
