"""What a function with TRL's parameters is given: texts, or messages for conversations, token ids and columns."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

_OURS = {
    "messages",
    "ended",
    "prompt",
    "completion",
    "completion_ids",
    "sampled",
}  # not passed on as columns, as in TRL


def keywords(
    prompts: list[str],
    responses: list[str],
    columns: Mapping[str, Any],
    sampled: Any | None,
    named: Collection[str],
) -> dict[str, Any]:
    """Return the lists that a function gets by name, one item per response.

    Args:
        prompts, responses: texts.
        columns: as a reward is given them, with `messages` for conversations and `ended`.
        sampled: a SampledTokens; None if nothing was sampled.
        named: the function's parameters: `ended` is given only to a function that names it.
    """
    conversations = columns.get("messages") or [None] * len(prompts)
    given: dict[str, Any] = {name: column for name, column in columns.items() if name not in _OURS}
    given["prompts"] = [text if asked is None else asked for asked, text in zip(conversations, prompts, strict=True)]
    given["completions"] = [
        text if asked is None else [{"role": "assistant", "content": text}]
        for asked, text in zip(conversations, responses, strict=True)
    ]
    if sampled is not None:
        given["completion_ids"] = [list(ids) for ids in sampled.responses]
        given |= {} if sampled.state is None else {"trainer_state": sampled.state}
    return given | {"ended": columns["ended"]} if "ended" in named and "ended" in columns else given


_SINGLE = {"prompts": "prompt", "completions": "completion", "responses": "response"}


def each_row(given: Mapping[str, Any], n: int, arguments: Collection[str]) -> Iterator[dict[str, Any]]:
    """Yield what each of `n` calls gets: the row's value of every list, and arguments as they are."""
    whole = {*arguments, "trainer_state"}
    for i in range(n):
        yield {_SINGLE.get(name, name): x if name in whole else x[i] for name, x in given.items()}
