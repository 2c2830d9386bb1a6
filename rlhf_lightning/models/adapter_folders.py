"""Adapters in a folder: training continues from them, or they are merged into the base.

They may come from elsewhere, with any of peft's settings. The result is what plain peft computes from the folder; a
setting for which that cannot be guaranteed is refused by name.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from rlhf_lightning.errors import UserError, blaming, named
from rlhf_lightning.models.adapters import TRAINED, LoRA, read_adapter
from rlhf_lightning.models.loaded_weights import HEAD

Task = Literal["CAUSAL_LM", "SEQ_CLS"]

# Settings of peft's LoraConfig that are supported here, for merging and training.
_RIGHT = [
    "r",
    "target_modules",
    "exclude_modules",
    "lora_alpha",
    "lora_dropout",
    "fan_in_fan_out",
    "bias",
    "use_rslora",
    "modules_to_save",
    "init_lora_weights",
    "layers_to_transform",
    "layers_pattern",
    "rank_pattern",
    "alpha_pattern",
    "trainable_token_indices",
    "use_dora",
    "lora_bias",
    "target_parameters",
    "ensure_weight_tying",
]
# About the folder, or the call that reads it: no result depends on them.
_NO_SETTINGS = [
    "task_type",
    "peft_type",
    "auto_mapping",
    "peft_version",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "runtime_config",
    "loftq_config",
    "eva_config",
    "corda_config",
    "lora_ga_config",
    "megatron_core",
]
_INITIALISED_FROM_THE_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga")  # they change the base's weights


def begin_from_adapter(model: Any, folder: str, task: Task, lora: LoRA | None) -> Any:
    """Return the model with a folder's adapter on it, every saved weight in place.

    Args:
        model: the base, with a score head for `SEQ_CLS`.
        folder: the adapter's folder.
        task: what the model is.
        lora: train the adapter, which must have this shape; None: it will only be merged.

    Raises:
        UserError: an unsupported setting, another shape, or weights that do not fit.
    """
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    config, weights = read_adapter(folder)
    _check_settings(config, folder)
    if task == "CAUSAL_LM" and str(getattr(config.task_type, "value", config.task_type)) == "SEQ_CLS":
        raise UserError(f"{named()}: {folder} is the adapter of a reward model; give the language model before it")
    if lora is not None:
        _check_same_shape(config, lora, folder)
        config.lora_dropout = lora.dropout
    if task == "SEQ_CLS":
        config.modules_to_save = sorted({*(config.modules_to_save or []), HEAD})
    config.task_type, config.inference_mode = task, lora is None
    asked = None if lora is None else _asked_layers(model, lora)
    with _in_one_line(folder):
        adapted = get_peft_model(model, config)
        fresh = {name: weight for name, weight in get_peft_model_state_dict(adapted).items() if f".{HEAD}." in name}
        set_peft_model_state_dict(adapted, {**fresh, **weights})  # a language model's adapter has no score head
    _check_arrived(adapted, weights, folder)
    if asked is not None:
        _check_layers(adapted, asked, folder)
    return adapted


def merge_adapter(adapted: Any, folder: str) -> Any:
    """Return the base with its adapter added to the weights; what was trainable before the adapter came is again.

    If the output layer is tied to the embedding and only one of the two is adapted, it gets its own weights.

    Raises:
        UserError: the adapter cannot be merged, for example one with biases if the base has none.
    """
    base = adapted.get_base_model()
    _untie_what_is_adapted(base)
    with _in_one_line(folder):
        merged = adapted.merge_and_unload()
    read, written = merged.get_input_embeddings(), merged.get_output_embeddings()
    if written is not None and written.weight is not read.weight:
        merged.config.tie_word_embeddings = False
        merged.config.get_text_config().tie_word_embeddings = False
    for parameter in merged.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(True)
    return merged


def _untie_what_is_adapted(base: nn.Module) -> None:
    """Untie every adapted layer that shares its weight with another, so that it has a copy to be updated."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    seen: dict[int, int] = {}
    for _, parameter in base.named_parameters(remove_duplicate=False):
        seen[id(parameter)] = seen.get(id(parameter), 0) + 1
    for module in base.modules():
        if isinstance(module, BaseTunerLayer):
            layer: Any = module.get_base_layer()
            weight = getattr(layer, "weight", None)
            if isinstance(weight, nn.Parameter) and seen.get(id(weight), 0) > 1:
                layer.weight = nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)


def _check_settings(config: Any, folder: str) -> None:
    """Refuse a setting that changes the computation in a way that merging or training does not preserve."""
    usual = type(config)()
    for name, value in vars(config).items():
        if name in _RIGHT or name in _NO_SETTINGS or not value or value == getattr(usual, name, None):
            continue
        raise UserError(
            f"{named()}: {folder}/adapter_config.json: {name} is {value}; adapters with it are not supported: merge "
            "it with the tool that made it, and give the merged model"
        )


def _check_same_shape(saved: Any, lora: LoRA, folder: str) -> None:
    init = saved.init_lora_weights
    if isinstance(init, str) and init.startswith(_INITIALISED_FROM_THE_BASE):
        raise UserError(
            f'{named()}: {folder}/adapter_config.json: init_lora_weights is "{init}", which changes the base: with '
            "the adapter off it is no longer the reference; leave model/adapter out to train the merged weights"
        )
    pairs = {"rank": "r", "alpha": "lora_alpha", "use_rslora": "use_rslora", "use_dora": "use_dora"}
    for key, name in pairs.items():
        if getattr(saved, name) != getattr(lora, key):
            raise UserError(
                f"model.adapter.{key}: found {getattr(lora, key)}, but the adapter that training begins from "
                f"({folder}) has {getattr(saved, name)}; set model.adapter.{key}={getattr(saved, name)}, or merge that "
                "adapter into its base first: rlhf-export"
            )


def _asked_layers(model: nn.Module, lora: LoRA) -> set[str]:
    """Return the last names of the layers that `target_modules` selects, as peft reads it."""
    wanted, output = lora.target_modules, getattr(model, "get_output_embeddings", lambda: None)()
    names = set()
    for name, module in model.named_modules():
        last = name.rpartition(".")[2]
        if wanted == "all-linear":
            meant = isinstance(module, nn.Linear | Conv1D) and module is not output and last != HEAD
        elif isinstance(wanted, str):
            meant = re.fullmatch(wanted, name) is not None
        else:
            meant = any(name == each or name.endswith(f".{each}") for each in wanted)
        if meant:
            names.add(last)
    return names


def _check_layers(adapted: Any, asked: set[str], folder: str) -> None:
    from peft.tuners.lora import LoraLayer
    from peft.tuners.lora.layer import ParamWrapper

    base = adapted.get_base_model()
    has = {
        name.rpartition(".")[2]
        for name, module in base.named_modules()
        if isinstance(module, LoraLayer) and not isinstance(module, ParamWrapper)
    }
    if adapted.peft_config[TRAINED].ensure_weight_tying and (has - asked) == {"lm_head"}:
        return  # the embedding's adapter, which the output layer shares
    if has != asked:
        raise UserError(
            f"model.adapter.target_modules: means {', '.join(sorted(asked))}, but the adapter that training begins "
            f"from ({folder}) adapts {', '.join(sorted(has))}; set model.adapter.target_modules="
            f"[{','.join(sorted(has))}], or leave model/adapter out to train the merged weights"
        )


def _check_arrived(adapted: Any, weights: dict[str, torch.Tensor], folder: str) -> None:
    """Check that every weight of the folder is on the model, and that the model has no other adapter weights."""
    from peft import get_peft_model_state_dict

    there = get_peft_model_state_dict(adapted, adapter_name=TRAINED)
    if lost := sorted(weights.keys() - there.keys()):
        raise UserError(f"{named()}: {folder}: its base has no place for {lost[0]}; correct base_model_name_or_path")
    new = (f".{HEAD}.", "base_layer.")  # a new head for a reward model; the frozen weights under an adapted embedding
    for name in sorted(there.keys() - weights.keys()):
        if not any(part in name for part in new):
            raise UserError(f"{named()}: {folder} lacks {name}, which its adapter_config.json asks for; save it again")
    for name, weight in weights.items():
        if not torch.equal(there[name].to("cpu", weight.dtype), weight):
            raise UserError(f"{named()}: {folder}: {name} is not loaded by peft; merge it with the tool that made it")


@contextlib.contextmanager
def _in_one_line(folder: str) -> Iterator[None]:
    """Report what peft finds wrong with an adapter, or with the base under it, as wrong input.

    Its warnings about missing weights and tied layers concern what is checked or corrected here.
    """
    with blaming(f"{named()}: peft cannot put the adapter {folder} on its base"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
