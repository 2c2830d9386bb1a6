"""Exact decoding of sampled tokens: the text that follows the prompt's, including its space and special tokens.

A response decoded on its own loses its first space with SentencePiece-like tokenizers ("weretwo friends"), and skipping
special tokens hides a policy that writes `<|im_start|>user`. Here

    text of the prompt + text of the response == text of prompt and response.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def decode_exactly(tokenizer: Any, ids: Sequence[int]) -> str:
    """Return the text of tokens, including special ones, with white space unchanged.

    An id that the tokenizer does not know (models may have more of them) becomes a replacement character.
    """
    known = len(tokenizer)
    unknown = next((i for i, token in enumerate(ids) if token >= known and _unknown(tokenizer, token)), None)
    if unknown is not None:
        rest = decode_exactly(tokenizer, ids[unknown + 1 :])
        return decode_exactly(tokenizer, ids[:unknown]) + "\N{REPLACEMENT CHARACTER}" + rest
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _unknown(tokenizer: Any, token: int) -> bool:
    return tokenizer.convert_ids_to_tokens(token) is None


def decode_after(tokenizer: Any, before: Sequence[int], ids: Sequence[int]) -> str:
    """Return the text of `ids` when preceded by `before`.

    A leading BOS is not context: what follows it is the start of a text. A character that begins in `before` belongs to
    `ids`.
    """
    before = _without_bos(tokenizer, before)
    return _text_after(tokenizer, before, decode_exactly(tokenizer, before), ids)


def _without_bos(tokenizer: Any, ids: Sequence[int]) -> Sequence[int]:
    return ids[1:] if ids and ids[0] == tokenizer.bos_token_id else ids


def _text_after(tokenizer: Any, before: Sequence[int], head: str, ids: Sequence[int]) -> str:
    """Return the text of `ids` after `before`, whose own text is `head`."""
    whole = decode_exactly(tokenizer, [*before, *ids])
    shared = next((i for i, (a, b) in enumerate(zip(head, whole, strict=False)) if a != b), min(len(head), len(whole)))
    return whole[shared:]


def response_texts(
    tokenizer: Any, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], ended: Sequence[bool]
) -> list[str]:
    """Return the text of every response as it continues its prompt, without the token that ended it.

    Args:
        tokenizer: the policy's.
        prompts: token ids, without padding.
        responses: token ids, without padding; an ended response ends with its end-of-sequence token.
        ended: whether each response has one.
    """
    heads: dict[tuple[int, ...], str] = {}  # a prompt with many responses is decoded once
    texts = []
    for prompt, response, end in zip(prompts, responses, ended, strict=True):
        before = tuple(_without_bos(tokenizer, prompt))
        if before not in heads:
            heads[before] = decode_exactly(tokenizer, before)
        texts.append(_text_after(tokenizer, before, heads[before], response[:-1] if end else response))
    return texts
