"""Writing a trained model as a folder that any tool can load and generate from."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_lightning.errors import BlownUpError
from rlhf_lightning.hashes import forget_hashes, write_hashes
from rlhf_lightning.models.adapters import save_network
from rlhf_lightning.models.loaded_weights import largest
from rlhf_lightning.models.reward_model import RewardModel
from rlhf_lightning.models.sharding import whole_state

BLOWN_UP = torch.finfo(torch.float16).max


def end_of_sequence_ids(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokenizer's EOS, then others in the model's generation config (chat models have several)."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    others = configured if isinstance(configured, list) else [configured]
    return list(dict.fromkeys(i for i in [tokenizer.eos_token_id, *others] if i is not None))


def check_weights(weights: Iterable[tuple[str, Tensor]]) -> None:
    """Check that no weight is NaN, infinite, or beyond the range of float16 (65,504).

    A loss is computed before its step, so nothing else has seen the effect of the last step. Weights of language models
    are far below that range.

    Raises:
        BlownUpError: there is such a weight.
    """
    for name, weight in weights:
        if not (value := largest(weight)) <= BLOWN_UP:
            raise BlownUpError(
                f"{name} holds the value {value:.3g}: training has blown up, so the model is not written, and an "
                "earlier one stays as it was; train again with a lower optimizer.lr"
            )


def save_model(model: Any, tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> None:
    """Write the weights (or the adapter), the tokenizer with its chat template, and the generation config.

    Call it on every process, because sharded weights are gathered; the first process writes.

    The generation config names every EOS used in training: plain `generate` would not stop at a tokenizer's EOS that
    the model's own config does not name. A reward model whose pad token is its EOS is saved without one: transformers
    scores the last token before the padding, and would mistake the answer's EOS for padding.

    Raises:
        UserError: the weights have blown up, see `check_weights`. Nothing is written then.
    """
    if isinstance(model, RewardModel):
        pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
        model.classifier.config.pad_token_id = None if pad == eos else pad
    settings = getattr(model, "generation_config", None)
    if settings is not None:
        ends = end_of_sequence_ids(model, tokenizer)
        settings.eos_token_id = ends if len(ends) > 1 else ends[0]
        settings.pad_token_id = tokenizer.pad_token_id
    network = model.classifier if isinstance(model, RewardModel) else model
    state = whole_state(network)
    if dist.is_initialized() and dist.get_rank() > 0:
        return
    check_weights(network.named_parameters() if state is None else state.items())
    forget_hashes(folder)
    save_network(network, folder, state)
    if isinstance(model, RewardModel) and not (Path(folder) / "config.json").is_file():
        network.config.save_pretrained(folder)  # peft writes only the adapter; this has the scores' unit
    tokenizer.save_pretrained(folder)


def export_model(model: Any, tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> None:
    """Call `save_model`, then write hashes of the files, so that later commands detect any change."""
    save_model(model, tokenizer, folder)
    if not (dist.is_initialized() and dist.get_rank() > 0):
        write_hashes(folder)
