"""Check that a model can read its rows, once both are known and before the first step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rlhf_lightning.data.batches import IGNORED
from rlhf_lightning.errors import UserError
from rlhf_lightning.models import RewardModel
from rlhf_lightning.models.forward import bare_model
from rlhf_lightning.models.limits import check_positions, check_tokens


def check_rows(module: Any, network: Any, key: str, longest_response: int = 0) -> None:
    """Raise UserError for token ids without an embedding, and for rows longer than the model's positions.

    Args:
        module: has a trainer with the data.
        network: reads the rows.
        key: the setting that shortens the rows.
        longest_response: tokens that sampling may add to a row.
    """
    data = getattr(module.trainer, "datamodule", None)
    splits = getattr(data, "tokenized_rows", None)
    if splits is not None:
        check_sequences(module, network, splits(), key, longest_response)


def check_sequences(module: Any, network: Any, rows: Iterable[Any], key: str, longest_response: int = 0) -> None:
    """Do the same for given rows."""
    sequences = [ids for row in rows if hasattr(row, "sequences") for ids in row.sequences()]
    if not sequences or network is None:
        return
    network = bare_model(network.classifier if isinstance(network, RewardModel) else network)
    tokenizer = module.tokenizer
    own = [i for i in (tokenizer.eos_token_id, tokenizer.pad_token_id) if i is not None]
    check_tokens(network, tokenizer, [*own, *(max(ids, default=0) for ids in sequences)], "model.path")
    longest = max(map(len, sequences))
    sampled = f" and rollout.max_new_tokens is {longest_response}" if longest_response else ""
    whose = "prompt" if longest_response else "row"
    advice = f"set {key} to at most {{limit}}" + (" less rollout.max_new_tokens" if longest_response else "")
    check_positions(
        network, longest + longest_response, f"{key}: the longest {whose} has {longest} tokens{sampled}", advice
    )


def check_prompts(module: Any, network: Any, longest_answer: int) -> None:
    """Check that a network can read demonstrations, and the answers that are sampled to their prompts.

    Args:
        module: has a trainer with the data.
        network: reads the rows.
        longest_answer: tokens of a sampled answer; 0: nothing is sampled.

    Raises:
        UserError: too long a row, too long an answer to the longest prompt, or rows that mark no prompt.
    """
    data = module.trainer.datamodule
    rows: list[Any] = getattr(data, "tokenized_rows", list)()
    bare = bare_model(network)
    longest = max((len(row.input_ids) for row in rows), default=0)
    check_positions(
        bare, longest, f"data.max_length: the longest row has {longest} tokens", "set it to at most {limit}"
    )
    if not longest_answer:
        return
    if getattr(data, "loss_on", None) == "all":
        raise UserError(
            "data.loss_on: found all, so rows do not say which part is the prompt to answer; use completion, or learn "
            "from given answers alone: algorithm.lmbda=0"
        )
    longest = max((next(i for i, label in enumerate(row.labels) if label != IGNORED) for row in rows), default=0)
    check_positions(
        *(bare, longest + longest_answer),
        f"algorithm.max_new_tokens: found {longest_answer}, and the longest prompt has {longest} tokens",
        "both together must be at most {limit}",
    )


def check_mismatched(module: Any, network: Any) -> None:
    """Raise UserError if a prompt with the answer to another one may be longer than the model's positions."""
    data = getattr(module.trainer, "datamodule", None)
    splits = getattr(data, "tokenized_rows", None)
    rows = [] if splits is None else splits()
    if not rows or network is None:
        return
    longest = max(len(row.prompt_ids) for row in rows) + max(len(row.answer) for row in rows)
    limit = getattr(data, "max_length", None)
    check_positions(
        bare_model(network),
        longest if limit is None else min(longest, limit),
        f"data.max_length: the longest prompt beside the longest answer has {longest} tokens",
        "set data.max_length to at most {limit}",
    )
