"""LoRA adapters on a frozen base, and the base in 4 bits.

A model with an adapter is a `peft.PeftModel`. Its trained adapter is called `default`; others (the reference, the
reward model) are frozen on the same base, and `adapter_active` switches between them.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from rlhf_lightning.errors import UserError, blaming, named
from rlhf_lightning.hashes import check_model_files
from rlhf_lightning.models.beside import add_beside
from rlhf_lightning.models.generation_settings import make_savable
from rlhf_lightning.models.loaded_weights import check_finite
from rlhf_lightning.value_checks import checked
from rlhf_lightning.value_types import BelowOne, Count, Positive, Text, Texts

TRAINED = "default"  # peft's own name: `save_pretrained` writes this one at the top of the folder
SAFE_INITIALISATIONS = ("default", "gaussian")
OUTPUT_LAYERS = ["lm_head", "embed_out", "score"]  # kept out of 4 bits


@checked("model.adapter")
@dataclass(frozen=True)
class LoRA:
    """W + scale B A, with B [out, rank] and A [rank, in] trained and W frozen (Hu et al. 2021).

    B starts at zero, so that the policy starts as its base, and the base with the adapter switched off is the
    reference.

    Args:
        rank: rank of the update.
        alpha: scale = alpha / rank, or alpha / sqrt(rank) with `use_rslora` (Kalajdzievski 2023).
        dropout: on the input of A. For SFT and reward models only: PPO and DPO switch all dropout off.
        use_rslora: scale by alpha / sqrt(rank).
        use_dora: separate direction and magnitude (Liu et al. 2024).
        target_modules: names of the linear layers, or `all-linear`: all but the output layer.
        init: initialisation of A: `default` (Kaiming uniform) or `gaussian`.

    Raises:
        UserError: an initialisation that changes the base weights (PiSSA, OLoRA, LoftQ, CorDA); an invalid pattern.
    """

    rank: Count = 16
    alpha: Positive = 32.0
    dropout: BelowOne = 0.0
    use_rslora: bool = False
    use_dora: bool = False
    target_modules: Text | Texts = "all-linear"
    init: Text = "default"

    def __post_init__(self) -> None:
        if self.init not in SAFE_INITIALISATIONS:
            raise UserError(
                f'model.adapter.init: found "{self.init}"; must be {" | ".join(SAFE_INITIALISATIONS)}. PiSSA, OLoRA, '
                "LoftQ and CorDA change the base weights: with the adapter off it would no longer be the reference"
            )
        if isinstance(self.target_modules, str):  # peft matches layer names against it
            try:
                re.compile(self.target_modules)
            except re.error as error:
                raise UserError(
                    f"model.adapter.target_modules: found {self.target_modules}, which is not a regular expression "
                    f"({error}); must be all-linear, a list of names, or a regular expression"
                ) from error

    def config(self, task: Literal["CAUSAL_LM", "SEQ_CLS"], revision: str | None) -> Any:
        """Return the peft configuration; a sequence classifier's score head is trained and saved with the adapter."""
        from peft import LoraConfig

        return LoraConfig(
            task_type=task,
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # peft computes with it; a fraction is fine
            lora_dropout=self.dropout,
            use_rslora=self.use_rslora,
            use_dora=self.use_dora,
            target_modules=self.target_modules,
            init_lora_weights=True if self.init == "default" else "gaussian",
            modules_to_save=["score"] if task == "SEQ_CLS" else None,
            revision=revision,
        )


@dataclass(frozen=True)
class NF4:
    """Frozen weights in 4-bit NormalFloat, computed in `compute_dtype` (Dettmers et al. 2023, QLoRA).

    Args:
        double_quant: quantise the scales too, which saves 0.37 bits per weight.
        compute_dtype: dtype of the matrix products.
    """

    double_quant: bool = True
    compute_dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"

    def config(self) -> Any:
        """Return the transformers configuration; it works on CPU and CUDA."""
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=self.double_quant,
            bnb_4bit_compute_dtype=getattr(torch, self.compute_dtype),
            llm_int8_skip_modules=OUTPUT_LAYERS,
        )


def keep_weights_as_they_are(network: nn.Module) -> None:
    """Keep bitsandbytes from repacking 4-bit layers in their first evaluation on a CPU with bfloat16 instructions.

    The repacked layer has its scales in bfloat16, multiplies in bfloat16 whatever `compute_dtype` says, and has no
    backward pass: after one reference pass the adapters below it would get no gradient. Every layer's first forward
    pass would also cast its bias to `compute_dtype` and so change the reference's hash: it is cast here.
    """
    module: Any
    for module in network.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
        if getattr(module, "compute_dtype", None) is not None and getattr(module, "bias", None) is not None:
            module.bias.data = module.bias.data.to(module.compute_dtype)


def is_adapter_folder(folder: str | Path) -> bool:
    """Return whether the folder has only an adapter, and names its base."""
    return (Path(folder) / "adapter_config.json").is_file()


def read_adapter(folder: str | Path) -> tuple[Any, dict[str, torch.Tensor]]:
    """Return the configuration and the weights of an adapter folder.

    Raises:
        UserError: it is not a LoRA adapter, names no base, has changed since it was written, or has weights that are
            not finite.
    """
    from peft.utils import load_peft_weights

    check_model_files(folder, weights=True)
    config = read_adapter_config(folder)
    if str(getattr(config.peft_type, "value", config.peft_type)) != "LORA":
        raise UserError(f"{named()}: {folder} holds a {config.peft_type} adapter; only LoRA adapters are supported")
    files = [name for name in ("adapter_model.safetensors", "adapter_model.bin") if (Path(folder) / name).is_file()]
    if Path(folder).is_dir() and not files:
        raise UserError(f"{named()}: {folder} has an adapter_config.json but no weights (adapter_model.safetensors)")
    with blaming(f"{named()}: the weights of the adapter {folder} cannot be read", "save it again"):
        weights = load_peft_weights(str(folder), device="cpu")
    check_finite(weights.items(), folder)
    return config, weights


def base_of(folder: str | Path) -> str:
    """Return the model under an adapter folder; any other model is its own base. Local folders are full paths."""
    base = str(read_adapter_config(folder).base_model_name_or_path) if is_adapter_folder(folder) else str(folder)
    return str(Path(base).resolve()) if Path(base).is_dir() else base


def base_name(model: Any) -> str:
    """Return the folder (full path) or hub name that the base of a model with adapters was loaded from."""
    base = str(model.peft_config[TRAINED].base_model_name_or_path)
    return str(Path(base).resolve()) if Path(base).is_dir() else base


def read_adapter_config(folder: str | Path) -> Any:
    """Return the configuration of an adapter folder.

    Raises:
        UserError: it cannot be read, or names no base.
    """
    from peft import PeftConfig

    file = Path(folder) / "adapter_config.json"
    with blaming(f"{named()}: {file} cannot be read"):
        config = PeftConfig.from_pretrained(str(folder))
    if not isinstance(config.base_model_name_or_path, str) or not config.base_model_name_or_path:
        raise UserError(f"{named()}: {file} does not name its base model (base_model_name_or_path)")
    if getattr(config, "megatron_config", None):  # peft would import the module that megatron_core names
        raise UserError(f"{named()}: {file}: megatron_config is set; adapters with it are not supported")
    return config


def add_adapter(model: Any, lora: LoRA, task: Literal["CAUSAL_LM", "SEQ_CLS"], revision: Any) -> Any:
    """Return the model with a new trainable adapter.

    Raises:
        UserError: no layer of the model has one of the names.
    """
    from peft import get_peft_model

    _check_rank(model, lora.rank)  # before memory is taken for it
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tied layers: `merge_adapter` unties what is adapted
            adapted = get_peft_model(model, lora.config(task, revision))
    except ValueError as error:
        text, allowed = str(error), "must be all-linear, or names of linear layers, such as [q_proj, v_proj]"
        if "target module" not in text.lower():
            raise
        why = "no layer of the model has such a name"
        if "is not supported" in text:  # `Target module LlamaRMSNorm((16,), eps=1e-06) is not supported.`
            why = f"it selects a {text.split()[2].partition('(')[0]}, which is not a linear layer"
        raise UserError(f"model.adapter.target_modules: found {lora.target_modules}; {why}; {allowed}") from error
    _check_names(adapted, lora.target_modules)
    _check_rank(adapted, lora.rank, adapted=True)
    return adapted


def _check_names(adapted: Any, names: str | list[str]) -> None:
    """Raise UserError for a name in the list that no adapted layer has: peft asks only for one match of them all."""
    found = adapted.targeted_module_names
    for name in names if isinstance(names, list) else ():
        if not any(each == name or each.endswith(f".{name}") for each in found):
            adapts = sorted({each.rpartition(".")[2] for each in found})
            raise UserError(
                f"model.adapter.target_modules: found {name}, which no layer of the model is called; the others select "
                f"{', '.join(adapts)}; correct it, or leave it out"
            )


def _check_rank(model: nn.Module, rank: int, adapted: bool = False) -> None:
    """Raise UserError for a rank that no layer, or no adapted layer, can have: at most a matrix's smaller side."""
    layers: list[Any] = [layer for layer in model.modules() if hasattr(layer, "lora_A") or not adapted]
    sides = [min(layer.in_features, layer.out_features) for layer in layers if hasattr(layer, "in_features")]
    sides += [min(layer.weight.shape) for layer in layers if isinstance(layer, Conv1D)]
    if sides and rank > max(sides):
        which = "the layers that are adapted have" if adapted else "the layers of the model have"
        raise UserError(
            f"model.adapter.rank: found {rank}; {which} at most {max(sides)} rows or columns; must be at most "
            f"{max(sides)}"
        )


def has_adapter(model: nn.Module) -> bool:
    """Return whether the model is a base with adapters."""
    return hasattr(model, "disable_adapter")


def can_be_switched(model: Any) -> bool:
    """Return whether the trained adapter consists only of LoRA on linear layers, so that others can replace it.

    Anything else that peft trains (copies of whole layers, biases, rows of the embedding) stays when an adapter is
    switched.
    """
    config = model.peft_config[TRAINED]
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    parts = tuple(f".lora_{part}.{TRAINED}" for part in ("A", "B", "magnitude_vector"))
    return (
        config.bias == "none"
        and not config.target_parameters
        and all(any(part in name for part in parts) for name in trained)
    )


def adapters_add_nothing(model: nn.Module) -> bool:
    """Return whether every trained LoRA update B A is still zero, as in a new adapter: B starts at zero."""
    updates = (p for name, p in model.named_parameters() if f"lora_B.{TRAINED}." in name)
    return not any(update.any() for update in updates)


def is_quantized_like(model: Any, settings: dict[str, Any] | None) -> bool:
    """Return whether a model's base is quantised with these settings of its config; None: not at all."""
    has = getattr(model.get_base_model().config, "quantization_config", None)
    of_model = {} if has is None else has if isinstance(has, dict) else has.to_dict()
    keys = ("quant_method", "load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "bnb_4bit_use_double_quant")
    return all(of_model.get(key) == (settings or {}).get(key) for key in keys)


def can_lie_beside(folder: str | Path) -> bool:
    """Return whether an adapter folder has only LoRA on linear layers and a score head, all loaded by `load_beside`."""
    config = read_adapter_config(folder)
    more = (config.target_parameters, config.trainable_token_indices, config.layer_replication)
    keeps_its_base = not isinstance(config.init_lora_weights, str) or config.init_lora_weights == "gaussian"
    heads = set(config.modules_to_save or []) <= {"score", "classifier"}  # peft's names for a classifier's head
    return config.bias == "none" and not any(more) and heads and keeps_its_base


def copy_adapter(model: Any, name: str) -> None:
    """Add a frozen copy of the trained adapter."""
    add_beside(model, name, model.peft_config[TRAINED], TRAINED)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for key, parameter in parameters.items():
            if f".{name}." in key:
                parameter.copy_(parameters[key.replace(f".{name}.", f".{TRAINED}.")])
    _freeze_adapter(model, name)


def load_beside(model: Any, folder: str | Path, name: str) -> dict[str, torch.Tensor]:
    """Load a frozen adapter next to the trained one; return those of its weights that are not LoRA updates.

    It has the dtype of the base's embeddings: for frozen weights, float32 beside bfloat16 only costs memory.
    """
    from peft import set_peft_model_state_dict

    config, weights = read_adapter(folder)
    config.modules_to_save, config.task_type, config.inference_mode = None, "CAUSAL_LM", True
    add_beside(model, name, config, TRAINED)
    updates = {key: weight for key, weight in weights.items() if "lora_" in key}
    outcome: Any = set_peft_model_state_dict(model, updates, adapter_name=name)
    key = named("reward.model")
    if lacking := [weight for weight in outcome.missing_keys if f".{name}." in weight]:
        raise UserError(f"{key}: {folder} lacks {lacking[0]}, which its adapter_config.json asks for")
    if unexpected := outcome.unexpected_keys:
        raise UserError(f"{key}: {folder} adapts layers that the policy does not have, such as {unexpected[0]}")
    _freeze_adapter(model, name)
    dtype = model.get_base_model().get_input_embeddings().weight.dtype
    for key, parameter in model.named_parameters():
        if f".{name}." in key:
            parameter.data = parameter.data.to(dtype)
    return {key: weight for key, weight in weights.items() if key not in updates}


def _freeze_adapter(model: Any, name: str) -> None:
    model.set_adapter(TRAINED)  # adding an adapter may switch to it; this call leaves all others frozen
    for key, parameter in model.named_parameters():
        if f".{name}." in key:
            parameter.requires_grad_(False)


@contextlib.contextmanager
def adapter_active(model: nn.Module, name: str) -> Iterator[None]:
    """Compute with the named adapter instead of the trained one, without gradients, and switch back.

    Only between a backward pass and the next forward pass: peft freezes inactive adapters, and a graph recorded before
    would silently lose its gradients.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    try:
        with torch.no_grad():
            for layer in layers:
                layer.set_adapter(name, inference_mode=True)
            yield
    finally:
        for layer in layers:
            layer.set_adapter(TRAINED)


def save_network(model: Any, folder: str | Path, state: dict[str, Any] | None = None) -> None:
    """Write a Hugging Face folder, or for a model with an adapter a folder of the trained adapter.

    Args:
        state: the weights to write; None: those of the model.
    """
    weights = {} if state is None else {"state_dict": state}
    settings = getattr(model, "generation_config", None)
    if settings is not None:
        make_savable(settings)
    if has_adapter(model):
        model.save_pretrained(folder, selected_adapters=[TRAINED], **weights)
    else:
        model.save_pretrained(folder, **weights)
