"""Loading models and tokenizers from a Hugging Face folder, a run folder or a hub name."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from rlhf_lightning.errors import UserError, blaming, is_out_of_memory, key_beside, named
from rlhf_lightning.hashes import check_model_files, checking_weights
from rlhf_lightning.kernels.registry import Asked, read_asked
from rlhf_lightning.kernels.use import use_kernels
from rlhf_lightning.models.adapter_folders import begin_from_adapter, merge_adapter
from rlhf_lightning.models.adapters import (
    NF4,
    LoRA,
    add_adapter,
    base_of,
    is_adapter_folder,
    keep_weights_as_they_are,
    read_adapter_config,
)
from rlhf_lightning.models.dropout import disable_dropout, silence
from rlhf_lightning.models.foreign_folders import check_foreign_folder, is_code_of_the_hub
from rlhf_lightning.models.forward import bare_model
from rlhf_lightning.models.loaded_weights import read_network
from rlhf_lightning.models.recomputation import keep_differentiable, recompute_activations
from rlhf_lightning.models.row_limit import keep_row_limit
from rlhf_lightning.models.self_check import check_causal_lm, check_classifier, plain_forward
from rlhf_lightning.value_types import Attention, Kernels, Text

Dtype = Literal["float32", "bfloat16", "float16", "auto"]


def run_model_folder(path: str | Path) -> str:
    """Resolve what a user calls "a model" to what transformers loads.

    A run folder becomes its exported `model/`; a Hugging Face folder, an adapter's folder and a hub name stay as they
    are.

    Raises:
        UserError: the path looks like a local folder but has no model in it, or its files have changed since they were
            written (see `check_model_files`; weights are hashed when they are loaded).
    """
    folder = Path(path)
    if _holds_model(folder / "model"):
        check_model_files(folder / "model")
        return str(folder / "model")
    if folder.is_dir() and not _holds_model(folder):
        raise UserError(f"{named()}: no model in {path}: expected {folder}/config.json or {folder}/model/config.json")
    looks_local = folder.is_absolute() or str(path).startswith(".") or len(folder.parts) > 2
    if looks_local and not folder.exists():
        raise UserError(f"{named()}: {path} does not exist")
    check_model_files(folder)
    return str(path)


def _holds_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() or is_adapter_folder(folder)


def load_tokenizer(path: str | Path, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a model, with EOS as pad token if it has none (padding is never read)."""
    folder = run_model_folder(path)
    if is_adapter_folder(folder) and not (Path(folder) / "tokenizer_config.json").is_file():
        folder, revision = base_of(folder), read_adapter_config(folder).revision
        check_model_files(folder)
    advice = NO_OWN_CODE if has_own_code(folder) else ""
    with blaming(f"{named()}: the tokenizer of {path} cannot be loaded", advice):
        tokenizer = AutoTokenizer.from_pretrained(folder, revision=revision, trust_remote_code=False)
    if tokenizer.eos_token_id is None:
        raise UserError(f"{named()}: the tokenizer of {path} has no EOS token; responses would never end")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def pretrained_arguments(
    dtype: Dtype, attn_implementation: str | None, revision: str | None, trust_remote_code: bool
) -> dict[str, Any]:
    """Return the keyword arguments of `from_pretrained` that every loader here shares.

    Raises:
        UserError: remote code without a pinned revision, which could change from one run to the next.
    """
    if trust_remote_code and revision is None:
        raise UserError("model.trust_remote_code=true needs model.revision, the commit whose code you have read")
    if is_code_of_the_hub(attn_implementation) and not trust_remote_code:
        raise UserError(
            f"{key_beside('attn_implementation')}: found {attn_implementation}, which is code from the hub and is not "
            "run; must be sdpa, eager, flash_attention_2, or with model.trust_remote_code=true such a kernel"
        )
    return {
        "dtype": "auto" if dtype == "auto" else getattr(torch, dtype),
        "attn_implementation": attn_implementation,
        "revision": revision,
        "trust_remote_code": trust_remote_code,
    }


def load_causal_lm(
    path: Text | Path,
    dtype: Dtype = "float32",
    attn_implementation: Attention | None = None,
    revision: Text | None = None,
    trust_remote_code: bool = False,
    dropout: bool = True,
    activation_checkpointing: bool = False,
    adapter: LoRA | None = None,
    quantization: NF4 | None = None,
    kernels: Kernels = "auto",
) -> Any:
    """Return a causal language model to train, in `dtype` (`auto`: the checkpoint's own).

    Args:
        path: a run folder, a Hugging Face folder, an adapter folder or a hub name. A folder's adapter is trained
            further if `adapter` asks for one, and merged into the weights otherwise.
        dropout: False sets every dropout probability to 0 (see `disable_dropout`).
        activation_checkpointing: recompute the layers' activations in the backward pass instead of storing them.
        adapter: train only a LoRA adapter.
        quantization: keep the frozen base in 4 bits.
        kernels: `auto` (those measured to be worthwhile on this hardware), `none`, or names from `kernels.KERNELS`.

    Raises:
        UserError: no model found; 4 bits without an adapter; an adapter of another shape; unpinned remote code; a
            kernel that does not exist, or that has no effect here.
    """
    asked = read_asked(kernels, key_beside("kernels"))
    arguments = pretrained_arguments(dtype, attn_implementation, revision, trust_remote_code)
    network, _, start = load_network(AutoModelForCausalLM, path, arguments, adapter, quantization)
    return prepare_to_train(network, "CAUSAL_LM", start, revision, dropout, activation_checkpointing, adapter, asked)


def load_network(
    auto_class: Any,
    path: str | Path,
    arguments: dict[str, Any],
    adapter: LoRA | None,
    quantization: NF4 | None,
    new: str | None = None,
) -> tuple[Any, bool, str | None]:
    """Return the base network, whether the layer that may be `new` is new, and the adapter folder, if any.

    Raises:
        UserError: 4 bits without an adapter; a folder that has changed since it was written; missing weights, see
            `read_network`.
    """
    folder = run_model_folder(path)
    if quantization is not None:
        if adapter is None:
            raise UserError("model.quantization: 4-bit weights cannot be trained themselves; choose model/adapter=lora")
        arguments = {**arguments, "quantization_config": quantization.config()}
    start = folder if is_adapter_folder(folder) else None
    if start is not None:
        arguments = {**arguments, "revision": read_adapter_config(folder).revision}
    base = base_of(folder)
    if is_adapter_folder(base):
        raise UserError(f"{named()}: the base of the adapter {folder} is itself an adapter ({base}); merge that first")
    check_foreign_folder(base, arguments["revision"], arguments["trust_remote_code"])
    try:
        with checking_weights(base):
            network, is_new = read_network(auto_class, base, arguments, new)
    except Exception as error:  # each family raises its own, for any content of config.json
        if isinstance(error, UserError) or is_out_of_memory(error):
            raise
        raise UserError(_cannot_load(arguments["attn_implementation"], base, error)) from error
    if getattr(network, "is_quantized", False):
        keep_weights_as_they_are(network)
    elif packed := getattr(network.config, "quantization_config", None):
        # transformers only warns, and takes the packed numbers for the weights themselves.
        method = packed.get("quant_method") if isinstance(packed, dict) else packed
        raise UserError(
            f"{named()}: {base} is quantised by {str(method)[:80]!r}, which transformers does not know; take the model "
            "that is not quantised, and ask for 4 bits by model/quantization=nf4"
        )
    return network, is_new, start


def _cannot_load(attention: str | None, folder: str, error: Exception) -> str:
    """Return transformers' complaint about a model that it cannot build, in one line, with the responsible key."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    words = ("attn_implementation", "attention implementation", "scaled_dot_product_attention", "flash", "flex")
    key = key_beside("attn_implementation")
    if attention is not None and any(word in reason.lower() for word in words):
        return (
            f"{key}: found {attention}, which {folder} cannot use ({reason.split('. ')[0]}); "
            "must be eager, or null for what the family supports"
        )
    return f"{named()}: {folder} cannot be loaded: {NO_OWN_CODE if has_own_code(folder) else reason}"


def try_network(
    path: str | Path, task: Literal["CAUSAL_LM", "SEQ_CLS"], attention: str | None, architecture: Any
) -> Any:
    """Build a network without weights, on the meta device, to check that its family supports a run's settings.

    Args:
        path: the folder or hub name that the architecture was read from.
        task: a language model or a scalar reward model.
        attention: `attn_implementation`.
        architecture: the transformers configuration; a few layers are enough.

    Raises:
        UserError: transformers cannot build it, or not with this attention.
    """
    loader = AutoModelForCausalLM if task == "CAUSAL_LM" else AutoModelForSequenceClassification
    try:
        with torch.device("meta"):
            return loader.from_config(architecture, attn_implementation=attention)
    except Exception as error:  # each family raises its own, for any content of config.json
        if isinstance(error, UserError) or is_out_of_memory(error):
            raise
        raise UserError(_cannot_load(attention, str(path), error)) from error


def prepare_to_train(
    network: Any,
    task: Literal["CAUSAL_LM", "SEQ_CLS"],
    start: str | None,
    revision: str | None,
    dropout: bool,
    activation_checkpointing: bool,
    adapter: LoRA | None,
    kernels: Asked = "auto",
    only_fitting: bool = False,
) -> Any:
    """Return the network in training mode, with dropout, activation checkpointing, adapter and kernels."""
    if activation_checkpointing:
        recompute_activations(network)
    if start is not None:
        begun = begin_from_adapter(network, start, task, adapter)
        # Merged into 4-bit weights, the update would be rounded to them, so there it stays separate.
        network = (
            begun if adapter is not None or getattr(network, "is_quantized", False) else merge_adapter(begun, start)
        )
    elif adapter is not None:
        network = add_adapter(network, adapter, task, revision)
    if activation_checkpointing:
        keep_differentiable(bare_model(network))
    meta = on_meta(network)
    plain = None if meta else plain_forward(network)  # before parts get this package's forward passes
    if not dropout:
        disable_dropout(network)
    use_kernels(
        *(bare_model(network), kernels), checkpointing=activation_checkpointing, only_fitting=only_fitting or meta
    )
    if plain is not None:
        keep_row_limit(network)
        (check_causal_lm if task == "CAUSAL_LM" else check_classifier)(network, plain)
    return network.train()


def on_meta(network: nn.Module) -> bool:
    """Return whether the network has only shapes, as a plan needs it."""
    return any(parameter.is_meta for parameter in network.parameters())


def load_config(path: str | Path, revision: str | None = None) -> Any:
    """Return the configuration without reading weights."""
    folder = base_of(run_model_folder(path))
    check_model_files(folder)
    advice = NO_OWN_CODE if has_own_code(folder) else ""
    check_foreign_folder(folder, revision, trust_remote_code=False)
    with blaming(f"{named()}: the configuration of {path} cannot be read", advice):
        return AutoConfig.from_pretrained(folder, revision=revision, trust_remote_code=False)


NO_OWN_CODE = (
    "it comes with its own code (auto_map), which is not run; choose a model that transformers supports, or read the "
    "code and give model.trust_remote_code=true with model.revision"
)


def has_own_code(folder: str | Path) -> bool:
    """Return whether a local folder's configuration (model or tokenizer) requires code from that folder."""
    files = [Path(folder) / name for name in ("config.json", "tokenizer_config.json")]
    return any(file.is_file() and '"auto_map"' in file.read_text(encoding="utf-8", errors="replace") for file in files)


def freeze(model: nn.Module) -> nn.Module:
    """Turn gradients and dropout off permanently, as a reference or a reward model needs."""
    silence(model)
    return model.requires_grad_(False).eval()


def fingerprint(model: nn.Module) -> str:
    """Return SHA-256 of the names and bytes of all parameters: equal only for bitwise equal models.

    Sharded weights are gathered one at a time, so every process must call it.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(name.encode())
        whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
        digest.update(whole.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
