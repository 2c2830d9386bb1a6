"""Tokenising text the same way for training rows and for scoring rollouts.

For every tokenizer: at most one BOS; one EOS on an ended answer; the prompt's ids are those that generation starts
from; a rendered chat template is tokenised like `apply_chat_template(tokenize=True)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_lightning.data.decoding import decode_after
from rlhf_lightning.data.messages import Options, Text
from rlhf_lightning.data.templates import NO_OPTIONS, is_conversational, render_completion, render_prompt
from rlhf_lightning.errors import UserError


@dataclass(frozen=True)
class Rendered:
    """A prompt and its completion as text. `templated`: the chat template has already written the special tokens."""

    prompt: str
    completion: str
    templated: bool = False


def tokenize_prompt(tokenizer: Any, prompt: Text, max_length: int | None = None) -> list[int]:
    """Return the ids that generation starts from, at most `max_length`: the end of the prompt is kept, and its BOS."""
    ids = tokenize_prompts(tokenizer, [render_prompt(tokenizer, prompt)], [is_conversational(prompt)])[0]
    return truncate_prompt(ids, max_length, tokenizer.bos_token_id)


def tokenize_prompts(tokenizer: Any, texts: list[str], templated: Sequence[bool]) -> list[list[int]]:
    """Return the ids of rendered prompts, untruncated, in one call of the tokenizer."""
    return _with_prefix(tokenizer, _encode(tokenizer, texts), templated)


def tokenize_completions(
    tokenizer: Any,
    prompts: Sequence[Text],
    completions: Sequence[Text],
    ended: Sequence[bool],
    options: Sequence[Options] | None = None,
) -> list[tuple[list[int], list[int]]]:
    """Return ids of prompts and of their completions, not truncated, in a few calls of the tokenizer.

    Args:
        tokenizer: a transformers tokenizer.
        prompts: strings, or messages.
        completions: strings (after messages: what the assistant says), or messages.
        ended: whether each answer is complete and gets its EOS, exactly once, even if its text already ends with one.
            False for a sampled response that was cut off: an EOS in its text is removed.
        options: what else the chat template receives, for each row.
    """
    given = [NO_OPTIONS] * len(prompts) if options is None else options
    pairs: list[tuple[list[int], list[int]]] = [([], [])] * len(prompts)
    for end in (True, False):
        rows = [i for i, is_ended in enumerate(ended) if bool(is_ended) is end]
        texts = [
            Rendered(
                render_prompt(tokenizer, prompts[i], given[i]),
                render_completion(tokenizer, prompts[i], completions[i], ended=end, options=given[i]),
                is_conversational(prompts[i]),
            )
            for i in rows
        ]
        for i, pair in zip(rows, tokenize_rendered(tokenizer, texts, ended=end), strict=True):
            pairs[i] = pair
    return pairs


def tokenize_rendered(
    tokenizer: Any, texts: Sequence[Rendered], *, ended: bool = True
) -> list[tuple[list[int], list[int]]]:
    """Return ids of prompts and completions, in a few calls of the tokenizer.

    A completion is tokenised in the prompt's context if that leaves the prompt's own ids unchanged (SentencePiece-like
    tokenizers put a space before a text on its own), and on its own if a token would span both.
    """
    eos_id, eos = tokenizer.eos_token_id, tokenizer.eos_token
    if ended and eos_id is None:
        raise UserError("the tokenizer has no EOS token, so an answer could not end; set `eos_token` in its config")
    completions = [_without_eos(text.completion, eos) for text in texts]
    prompts = list(dict.fromkeys(text.prompt for text in texts))  # answers share prompts
    ids_of = dict(zip(prompts, _encode(tokenizer, prompts), strict=True))
    prompt_ids = [ids_of[text.prompt] for text in texts]
    completion_ids = _encode_after(tokenizer, [text.prompt for text in texts], prompt_ids, completions)
    prompt_ids = _with_prefix(tokenizer, prompt_ids, [text.templated for text in texts])
    end = [eos_id] if ended else []
    return [(prompt, completion + end) for prompt, completion in zip(prompt_ids, completion_ids, strict=True)]


def truncate_prompt(ids: list[int], max_length: int | None, bos_id: int | None) -> list[int]:
    """Return the last `max_length` ids; a leading BOS is kept as the first of them.

    >>> truncate_prompt([1, 5, 6, 7, 8], 3, bos_id=1)
    [1, 7, 8]
    """
    if max_length is None or len(ids) <= max_length:
        return ids
    if bos_id is not None and ids[0] == bos_id and max_length > 1:
        return [bos_id, *ids[len(ids) - max_length + 1 :]]
    return ids[len(ids) - max_length :]


def truncate(
    prompt: list[int],
    answers: list[list[int]],
    max_length: int | None,
    max_prompt_length: int | None = None,
    bos_id: int | None = None,
) -> tuple[list[int], list[list[int]]]:
    """Shorten a prompt, and its answers, until prompt + answer has at most `max_length` tokens.

    The prompt is shortened first, from its start, down to half of `max_length`; then the answers, from their ends. All
    answers of a prompt keep the same prompt. A truncated answer has no EOS: the model should not learn to stop there.

    >>> truncate([1, 2, 3, 4, 5, 6], [[7, 8], [9]], max_length=6)
    ([3, 4, 5, 6], [[7, 8], [9]])
    >>> truncate([1, 2, 3, 4], [[5, 6, 7, 8]], max_length=6)
    ([2, 3, 4], [[5, 6, 7]])
    """
    prompt = truncate_prompt(prompt, max_prompt_length, bos_id)
    longest = max(len(answer) for answer in answers)
    if max_length is None or len(prompt) + longest <= max_length:
        return prompt, answers
    prompt = truncate_prompt(prompt, max(max_length - longest, max_length // 2), bos_id)
    return prompt, [answer[: max_length - len(prompt)] for answer in answers]


def _encode(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    if not texts:
        return []
    return tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]


def _encode_after(
    tokenizer: Any, prompts: list[str], prompt_ids: list[list[int]], completions: list[str]
) -> list[list[int]]:
    results: list[list[int] | None] = [None] * len(prompts)
    if tokenizer.is_fast and prompts:
        joint, offset_mapping = _encode_with_offsets(
            tokenizer, [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
        )
        for row, (ids, offsets) in enumerate(zip(joint, offset_mapping, strict=True)):
            if _splits_at(ids, offsets, prompt_ids[row], len(prompts[row])):
                results[row] = ids[len(prompt_ids[row]) :]
    alone = [row for row, ids in enumerate(results) if ids is None]
    for row, ids in zip(alone, _encode(tokenizer, [completions[row] for row in alone]), strict=True):
        results[row] = _same_text(tokenizer, prompt_ids[row], completions[row], ids)
    return [ids for ids in results if ids is not None]


def _encode_with_offsets(tokenizer: Any, texts: list[str]) -> tuple[list[list[int]], list[list[tuple[int, int]]]]:
    encoded = tokenizer(
        texts, add_special_tokens=False, return_attention_mask=False, return_offsets_mapping=True, verbose=False
    )
    return encoded["input_ids"], encoded["offset_mapping"]


def _splits_at(ids: list[int], offsets: list[tuple[int, int]], before: list[int], boundary: int) -> bool:
    """Return whether ids begin with those of the text before `boundary`, and no token spans it."""
    split = len(before)
    if ids[:split] != before:
        return False
    inside = not split or offsets[split - 1][1] <= boundary
    return inside and all(start >= boundary for start, _ in offsets[split : split + 1])


CONTEXTS = ("\n", ".", "a", " ", "0")


def _same_text(tokenizer: Any, prompt_ids: list[int], completion: str, alone: list[int]) -> list[int]:
    """Return ids of a completion that decode, after the prompt, to the completion.

    SentencePiece-like tokenizers put a space before a text tokenised on its own, but not after one character of
    context. If no context helps (the tokenizer's decoding is not exact), the ids are those of the text on its own.
    """
    if not tokenizer.is_fast or not completion or decode_after(tokenizer, prompt_ids, alone) == completion:
        return alone
    encoded = zip(
        CONTEXTS,
        *_encode_with_offsets(tokenizer, [context + completion for context in CONTEXTS]),
        _encode(tokenizer, list(CONTEXTS)),
        strict=True,
    )
    for context, ids, offsets, before in encoded:
        if _splits_at(ids, offsets, before, len(context)):
            candidate = ids[len(before) :]
            if decode_after(tokenizer, prompt_ids, candidate) == completion:
                return candidate
    return alone


def _with_prefix(tokenizer: Any, encoded: list[list[int]], templated: Sequence[bool]) -> list[list[int]]:
    """Add what the tokenizer puts before a plain text (its BOS), unless the text or a template already has it."""
    prefix = _prefix_ids(tokenizer)
    return [
        ids if done or ids[: len(prefix)] == prefix else prefix + ids
        for ids, done in zip(encoded, templated, strict=True)
    ]


def _prefix_ids(tokenizer: Any) -> list[int]:
    """Return what the tokenizer puts before a plain text, found by trying, since a post-processor can do anything."""
    bare, dressed = _encode(tokenizer, ["a"])[0], tokenizer("a")["input_ids"]
    starts = range(len(dressed) - len(bare) + 1)
    start = next((start for start in starts if dressed[start : start + len(bare)] == bare), 0)
    return list(dressed[:start])


def _without_eos(text: str, eos: str | None) -> str:
    """Return the text without an EOS that it or a template spells out, and without white space after that."""
    while eos and text.rstrip().endswith(eos):
        text = text.rstrip()[: -len(eos)]
    return text
