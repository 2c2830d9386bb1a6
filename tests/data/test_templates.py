from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from rlhf_lightning.data import render_completion, render_prompt
from rlhf_lightning.data.templates import assistant_tokens
from rlhf_lightning.errors import UserError
from tests.data.conftest import MARKED_TEMPLATE, assistant, build_tokenizer, user


def test_plain_text_is_unchanged(tokenizer: PreTrainedTokenizerFast) -> None:
    assert render_prompt(tokenizer, " a b ") == " a b "
    assert render_completion(tokenizer, "a", " b ") == " b "


def test_a_completion_is_what_the_template_adds_after_the_generation_prompt(
    chat_tokenizer: PreTrainedTokenizerFast,
) -> None:
    prompt, answer = [user("a"), assistant("b"), user("c")], [assistant("d")]
    before, after = render_prompt(chat_tokenizer, prompt), render_completion(chat_tokenizer, prompt, answer)
    assert before.endswith("assistant : ")
    assert after == "d<eos>\n"
    assert before + after == chat_tokenizer.apply_chat_template(prompt + answer, tokenize=False)


def test_a_sampled_response_is_rendered_as_a_training_row(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    prompt = [user("a")]
    assert render_completion(chat_tokenizer, prompt, "d") == render_completion(chat_tokenizer, prompt, [assistant("d")])
    assert render_completion(chat_tokenizer, prompt, "d", ended=False) == "d"


def test_an_open_assistant_message_is_continued(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    prompt = [user("a"), assistant("b c")]
    assert render_prompt(chat_tokenizer, prompt).endswith("assistant : b c")
    assert render_completion(chat_tokenizer, prompt, " d") == " d<eos>\n"


def test_messages_without_a_template_are_an_error_that_names_the_fix(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UserError, match="no chat template; use a chat model, set `chat_template`"):
        render_prompt(tokenizer, [user("a")])


def test_a_template_that_contradicts_its_generation_prompt_is_refused() -> None:
    changed = build_tokenizer(
        template="{% for m in messages %}{{ m['content'] }}{{ loop.length }} {% endfor %}"
        "{% if add_generation_prompt %}assistant : {% endif %}"
    )
    with pytest.raises(UserError, match="differently from the prompt it starts generation with"):
        render_completion(changed, [user("a")], [assistant("b")])


def test_what_a_template_raises_reads_as_one_message() -> None:
    strict = build_tokenizer(template="{{ raise_exception('system is not supported') }}")
    with pytest.raises(UserError, match=r"refuses the messages \(system, user\): system is not supported"):
        render_prompt(strict, [{"role": "system", "content": "a"}, user("b")])


def test_assistant_tokens_are_the_assistants_and_their_eos(marked_tokenizer: PreTrainedTokenizerFast) -> None:
    ids, mask = assistant_tokens(marked_tokenizer, [user("a"), assistant("b c"), user("d"), assistant("e")])
    marked = marked_tokenizer.convert_ids_to_tokens([i for i, flag in zip(ids, mask, strict=True) if flag])
    assert marked == ["b", "c", "<eos>", "e", "<eos>"]
    assert len(ids) == len(mask)


def test_a_conversation_whose_template_has_no_eos_gets_one_at_the_end() -> None:
    without = build_tokenizer(template=MARKED_TEMPLATE.replace("{{ eos_token }}", ""))
    ids, mask = assistant_tokens(without, [user("a"), assistant("b")])
    assert without.convert_ids_to_tokens(ids)[-2:] == ["b", "<eos>"]
    assert mask[-2:] == [1, 1]


def test_a_template_without_generation_blocks_is_an_error_that_names_the_fix(
    chat_tokenizer: PreTrainedTokenizerFast,
) -> None:
    with pytest.raises(UserError, match=r"put {% generation %} \.\.\. {% endgeneration %} around it"):
        assistant_tokens(chat_tokenizer, [user("a"), assistant("b")])


def test_an_all_zero_mask_is_an_error(marked_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UserError, match="no message is the assistant's"):
        assistant_tokens(marked_tokenizer, [user("a")])
