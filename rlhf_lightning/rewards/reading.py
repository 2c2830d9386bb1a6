"""The tokens of a prompt and its response that a reward model reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rlhf_lightning.data import tokenize_completions
from rlhf_lightning.data.messages import Message, Options, Text, keep_known, template_options
from rlhf_lightning.data.templates import chat_template, render_completion, render_prompt
from rlhf_lightning.errors import UserError
from rlhf_lightning.rewards.samples import SampledTokens

MARK = "0123456789"  # an answer that no template changes
Tokens = tuple[list[int], list[int]]  # prompt, response


def text_rows(
    tokenizer: Any,
    prompts: Sequence[Text],
    responses: Sequence[str],
    ended: Sequence[bool],
    options: Sequence[Options],
) -> list[Tokens]:
    """Tokenise texts like the reward model's training data; a response that was cut off gets no EOS."""
    known = [
        keep_known(given, chat_template(tokenizer, given)) if given else given for given in options
    ]  # the policy's template may have settings that this one lacks
    return tokenize_completions(tokenizer, prompts, responses, ended, known)


def sampled_rows(
    tokenizer: Any, sampled: SampledTokens, prompts: Sequence[Text], ended: Sequence[bool], options: Sequence[Options]
) -> list[Tokens]:
    """Return the sampled ids themselves, for a policy with this same tokenizer.

    An ended answer has the EOS that the reward model was trained with, whichever of several end-of-sequence tokens the
    policy chose; if that was the chat template's end of turn, the EOS follows it.
    """
    rows, ends = [], {}
    for i, (prompt, response) in enumerate(zip(sampled.prompts, sampled.responses, strict=True)):
        if ended[i]:
            last, response = response[-1], response[:-1]
            if last != tokenizer.eos_token_id and not isinstance(prompts[i], str):
                key = repr(options[i])
                if key not in ends:
                    ends[key] = _end_of_turn(tokenizer, prompts[i], options[i])
                response = response + ends[key] if ends[key][:1] == [last] else response
            response = [*response, tokenizer.eos_token_id]
        rows.append((prompt, response))
    return rows


def _end_of_turn(tokenizer: Any, prompt: Text, options: Options) -> list[int]:
    """Return the ids that the template writes between an answer and its EOS."""
    _, after = _around_answer(tokenizer, prompt, options)
    (_, closed), (_, bare) = tokenize_completions(tokenizer, ["", ""], [MARK + after, MARK], [False, False])
    return closed[len(bare) :] if closed[: len(bare)] == bare else []


def _around_answer(tokenizer: Any, prompt: Text, options: Options) -> tuple[str, str]:
    """Return what the chat template writes before and after an answer, between generation prompt and EOS."""
    whole = render_completion(tokenizer, prompt, MARK, options=options)
    before, _, after = whole.partition(MARK)
    while tokenizer.eos_token and after.rstrip().endswith(tokenizer.eos_token):
        after = after.rstrip()[: -len(tokenizer.eos_token)]
    return before, after


def as_answer(tokenizer: Any, prompt: Text, text: str, ended: bool, options: Options) -> str:
    """Return the text of a sampled response without what the policy's chat template writes around an answer."""
    if isinstance(prompt, str):
        return text
    before, after = _around_answer(tokenizer, prompt, options)
    text = text.removeprefix(before)
    for end in (after, after.rstrip()):
        if ended and end and text.endswith(end):
            return text.removesuffix(end)
    return text


def shown_prompt(sampled: SampledTokens, text: str, messages: list[Message], tokenizer: Any, options: Options) -> Text:
    """Return the prompt as the policy saw it: the visible part of a conversation whose start was cut off.

    Args:
        sampled: has the policy's tokenizer.
        text: the prompt, rendered for the policy.
        messages: the whole conversation.
        tokenizer: the reward model's, whose template must accept what is left.
        options: of the policy's template.
    """
    if text == render_prompt(sampled.tokenizer, messages, options):
        return messages
    left = _visible(messages, text)
    try:
        render_prompt(tokenizer, left, keep_known(options, chat_template(tokenizer, options)))
    except UserError:  # some templates require a user turn first
        start = next((i for i, message in enumerate(left) if message["role"] == "user"), 0)
        left = left[start:]
    return left


def _visible(messages: list[Message], text: str) -> list[Message]:
    """Return the messages, or their ends, that a rendered conversation still shows after its start was cut off."""
    kept: list[Message] = []
    end = len(text)
    for message in reversed(messages):
        content = message["content"].strip()
        start = text.rfind(content, 0, end)
        if start >= 0:
            kept.append(message)
            end = start
            continue
        tail = next((content[i:] for i in range(len(content)) if text[:end].startswith(content[i:])), "")
        if tail or not kept:
            kept.append({**message, "content": tail})
        break
    return kept[::-1]


def reads_the_same(ours: Any, theirs: Any, templated: bool) -> bool:
    """Return whether two tokenizers produce the same ids for every text, with the same meaning.

    Vocabulary, merges, normalisation, splitting, decoding, added tokens and prefixes are compared, and for
    conversations the chat templates. For tokenizers that cannot be compared the answer is no.
    """
    if ours is theirs:
        return True
    if templated and ours.chat_template != theirs.chat_template:
        return False
    first, second = _definition(ours), _definition(theirs)
    return first is not None and first == second


def _definition(tokenizer: Any) -> Any:
    if not getattr(tokenizer, "is_fast", False):
        return None
    whole = json.loads(tokenizer.backend_tokenizer.to_str())
    parts = ("model", "normalizer", "pre_tokenizer", "decoder", "post_processor", "added_tokens")
    return {name: whole[name] for name in parts} | {"eos": tokenizer.eos_token_id, "bos": tokenizer.bos_token_id}


def row_options(columns: dict[str, Any], prompts: Sequence[Text | None]) -> list[Options]:
    """Return what each row gives the chat template besides its messages."""
    given = [columns.get(name) or [None] * len(prompts) for name in ("tools", "chat_template_kwargs")]
    return [
        template_options({"tools": tools, "chat_template_kwargs": others}, templated=True) if prompt is not None else {}
        for prompt, tools, others in zip(prompts, *given, strict=True)
    ]
