"""Limits on a model's input: token ids with an embedding, and rows no longer than its positions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from rlhf_lightning.errors import UserError, named


def positions(network: nn.Module) -> int | None:
    """Return the longest row that a model was made for, in tokens; None if it has no such limit."""
    config: Any = getattr(network, "config", None)
    if config is None:
        return None
    text = config.get_text_config()
    found = getattr(text, "max_position_embeddings", None)
    longest = int(found) if isinstance(found, int) and found > 0 else None
    steady = getattr(network, "row_limit", None)
    return min((limit for limit in (longest, steady) if limit is not None), default=None)


def embeddings(network: nn.Module) -> int:
    """Return how many token ids have an embedding: 0, ..., n - 1."""
    weight: Any = network.get_input_embeddings().weight  # type: ignore[operator]
    return int(getattr(weight, "ds_shape", weight.shape)[0])  # ZeRO-3 keeps the shape separately from the empty weight


def check_tokens(network: nn.Module, tokenizer: Any, ids: Iterable[int], key: str) -> None:
    """Raise UserError if the largest id has no embedding in the model.

    Args:
        network: reads the ids.
        tokenizer: produced them.
        ids: token ids of rows, or a few that represent them.
        key: the setting that names the model.
    """
    highest, count = max(ids, default=0), embeddings(network)
    if highest >= count:
        token = tokenizer.convert_ids_to_tokens(highest)
        raise UserError(
            f"{key}: the tokenizer's token {token!r} has the id {highest}, and the model has {count} embeddings (ids 0 "
            f"to {count - 1}); use the tokenizer that belongs to the model, or enlarge it with "
            "model.resize_token_embeddings(len(tokenizer)) and save both"
        )


def check_positions(network: nn.Module, longest: int, what: str, advice: str) -> None:
    """Raise UserError if rows of `longest` tokens are longer than the model's positions.

    Args:
        network: reads the rows.
        longest: number of tokens of the longest row.
        what: the setting that decides it, and what is that long.
        advice: what to do, with `{limit}` in place of the number of positions.
    """
    limit = positions(network)
    if limit is not None and longest > limit:
        raise UserError(f"{what}, and the model has {limit} positions; {advice.format(limit=limit)}")


def check_row(network: nn.Module, tokens: int) -> None:
    """Raise UserError if rows of this many tokens would change the network's outputs for shorter ones."""
    limit = getattr(network, "row_limit", None)
    if limit is not None and tokens > limit:
        config: Any = network.config
        raise UserError(
            f"{named()}: the rotary angles of {type(network).__name__} (model_type {config.model_type}) depend on the "
            f"longest row of a batch beyond {limit} tokens; found a row of {tokens}; must be at most {limit} "
            "(data.max_length, or data.max_prompt_length + rollout.max_new_tokens)"
        )
