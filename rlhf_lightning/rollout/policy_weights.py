"""Transferring the policy's weights to an engine that holds a copy of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_lightning.compat.transformers_names import source_of
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.adapters import TRAINED, base_name, can_be_switched, has_adapter, save_network
from rlhf_lightning.models.forward import bare_model


def base_source(model: Any) -> tuple[str, str | None]:
    """Return where the policy's base was loaded from, a folder or a hub name, and the commit of a hub name."""
    bare = bare_model(model)
    source, commit = source_of(bare.config)
    if has_adapter(model):
        source = base_name(model)
    return source, None if Path(source).is_dir() else commit


def check_output_layer(model: Any) -> None:
    """Check that vLLM, which reads the config of the base's folder, gives an untied output layer its own weights.

    If that config ties it to the embedding, vLLM silently skips the output layer's weights. The policy's output layer
    may have its own despite the config: after merging an adapter on one of the two, or because the folder has both.

    Raises:
        UserError: the config ties the two, but the policy does not; or the policy decodes with ILQL's values.
    """
    bare = bare_model(model)
    if getattr(bare, "guidance", None) is not None:
        raise UserError(
            "rollout.engine: vLLM cannot add the values of ILQL's heads to the logits; use rollout.engine=native"
        )
    config = bare.config
    source, revision = base_source(model)
    if not source or config.get_text_config().tie_word_embeddings:
        return
    if type(config).from_pretrained(source, revision=revision).get_text_config().tie_word_embeddings:
        raise UserError(
            f"rollout.engine: the policy's output layer has weights of its own, and vLLM would skip them: {source}/"
            "config.json says tie_word_embeddings; use rollout.engine=native, or start from a merged model that "
            "rlhf-export has written"
        )


def computing_dtype(model: nn.Module) -> torch.dtype:
    """Return the dtype the trainer computes in: autocast's if it is on, else that of the base weights."""
    weight = next(bare_model(model).parameters())
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


def adapter_rank(model: Any) -> int:
    """Return the rank of the trained adapter."""
    return int(model.peft_config[TRAINED].r)


def named_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights of a model without adapter by their names in a checkpoint."""
    from transformers.core_model_loading import revert_weight_conversion

    bare = bare_model(model)
    weights = {name: parameter.detach() for name, parameter in bare.named_parameters()}
    yield from revert_weight_conversion(bare, weights).items()


def _check_adapter(model: Any) -> None:
    """Check that vLLM uses the whole adapter: it supports LoRA matrices, of one scale, on linear layers.

    Raises:
        UserError: the adapter has more, which vLLM would ignore.
    """
    config = model.peft_config[TRAINED]
    more = [name for name in ("alpha_pattern", "rank_pattern", "lora_bias") if getattr(config, name)]
    if not can_be_switched(model):
        more.append("modules_to_save, bias, or parts of embeddings")
    if more:
        raise UserError(
            f"rollout.engine: vLLM would leave out a part of this adapter ({more[0]}); use rollout.engine=native, or "
            "train the merged weights: leave model/adapter out"
        )


def write_weights(model: nn.Module, folder: Path) -> None:
    """Write the weights, or only the trained adapter, as a Hugging Face or an adapter folder.

    The parameters are read directly. `state_dict` of a sharded model that is gathered for a rollout would shard it
    again, in this process only, and the next forward pass would wait for the others.
    """
    if has_adapter(model):
        _check_adapter(model)
    state = {name: parameter.detach() for name, parameter in model.named_parameters(remove_duplicate=False)}
    save_network(model, folder, state)
