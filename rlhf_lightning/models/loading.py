"""Models and tokenizers from a Hugging Face folder, a run folder or a hub name."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from rlhf_lightning.errors import UserError

Dtype = Literal["float32", "bfloat16", "float16", "auto"]


def run_model_folder(path: str | Path) -> str:
    """Resolve what a user calls "a model" to what transformers loads.

    A run folder becomes its exported `model/`; a Hugging Face or adapter folder and a hub name stay as they are.

    Raises:
        UserError: the path looks like a local folder and there is no model in it.
    """
    folder = Path(path)
    if _holds_model(folder / "model"):
        return str(folder / "model")
    if folder.is_dir() and not _holds_model(folder):
        raise UserError(f"model.path: no model in {path}: expected {folder}/config.json or {folder}/model/config.json")
    looks_local = folder.is_absolute() or str(path).startswith(".") or len(folder.parts) > 2
    if looks_local and not folder.exists():
        raise UserError(f"model.path: {path} does not exist")
    return str(path)


def _holds_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() or adapter_base(folder) is not None


def adapter_base(folder: str | Path) -> str | None:
    """The model under an adapter folder; None for any other folder or name."""
    file = Path(folder) / "adapter_config.json"
    return str(json.loads(file.read_text(encoding="utf-8"))["base_model_name_or_path"]) if file.is_file() else None


def merge_adapter(model: Any, folder: str) -> Any:
    """The model with the adapter of a folder added to its weights; itself if the folder holds no adapter."""
    if adapter_base(folder) is None:
        return model
    from peft import PeftModel

    return PeftModel.from_pretrained(model, folder).merge_and_unload()


def load_tokenizer(path: str | Path, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, with a pad token: the EOS where the model has none (padding is never read)."""
    tokenizer = AutoTokenizer.from_pretrained(run_model_folder(path), revision=revision)
    if tokenizer.eos_token_id is None:
        raise UserError(f"model.path: the tokenizer of {path} has no EOS token; responses would never end")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def pretrained_arguments(
    dtype: Dtype, attn_implementation: str | None, revision: str | None, trust_remote_code: bool
) -> dict[str, Any]:
    """The keyword arguments of `from_pretrained` that every loader here shares.

    Raises:
        UserError: remote code without a pinned revision: the code that runs could change from one run to the next.
    """
    if trust_remote_code and revision is None:
        raise UserError("model.trust_remote_code=true needs model.revision, the commit whose code you have read")
    return {
        "dtype": "auto" if dtype == "auto" else getattr(torch, dtype),
        "attn_implementation": attn_implementation,
        "revision": revision,
        "trust_remote_code": trust_remote_code,
    }


def load_causal_lm(
    path: str | Path,
    dtype: Dtype = "float32",
    attn_implementation: str | None = "sdpa",
    revision: str | None = None,
    trust_remote_code: bool = False,
    dropout: bool = True,
) -> PreTrainedModel:
    """A causal language model to train, in `dtype` (`auto`: the checkpoint's own).

    Args:
        path: a run folder, a Hugging Face folder or a hub name.
        dropout: False sets every dropout probability to 0 (see `disable_dropout`).
    """
    arguments = pretrained_arguments(dtype, attn_implementation, revision, trust_remote_code)
    folder = run_model_folder(path)
    model = AutoModelForCausalLM.from_pretrained(adapter_base(folder) or folder, **arguments)
    model = merge_adapter(model, folder)
    if not dropout:
        disable_dropout(model)
    return model


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout probability to 0, in modules and in the attention layers that keep it as a number.

    Policy and reference are compared token by token: with dropout on, the ratio of a policy to itself is not 1.
    The training flag stays free for activation checkpointing, which reads it.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "dropout", "attn_dropout_prob"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def load_config(path: str | Path, revision: str | None = None) -> Any:
    """The configuration alone, without reading weights."""
    return AutoConfig.from_pretrained(run_model_folder(path), revision=revision)


def freeze(model: nn.Module) -> nn.Module:
    """Turn gradients and dropout off for good: what a reference or a reward model needs."""
    disable_dropout(model)
    return model.requires_grad_(False).eval()


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over the names and bytes of all parameters: equal for bitwise equal models only."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
