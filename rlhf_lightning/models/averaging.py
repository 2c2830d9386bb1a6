"""The mean of the weights of several models that come from the same one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.loading import Dtype, load_causal_lm, load_tokenizer
from rlhf_lightning.models.reward_model import load_scorer

# What differs between configs of models that compute the same with the same weights.
_NO_COMPUTATION = (
    *("_name_or_path", "transformers_version", "dtype", "torch_dtype", "score_mean", "score_std", "use_cache"),
    *("pad_token_id", "eos_token_id", "bos_token_id", "quantization_config"),
)


def average_models(
    folders: Sequence[Path],
    weights: Sequence[float],
    scores: bool,
    dtype: Dtype,
    attn_implementation: str | None = None,
) -> tuple[Any, PreTrainedTokenizerBase]:
    """Return a model with the weighted mean of the weights of several, and their tokenizer.

        w = sum_i a_i w_i / sum_i a_i

    Adapters are merged into their bases first: the mean of the products BA, which the merged weights hold, is not the
    product of the means of A and of B. Sums are in float64 and rounded once, to `dtype`. The unit of a reward model's
    scores is not known for the mean.

    Args:
        folders: the models' folders.
        weights: a_i, positive.
        scores: they are reward models; their score heads are averaged with the rest.
        dtype, attn_implementation: of the result.

    Raises:
        UserError: other architectures, or other tokenizers.

    Source: Rame et al. 2024, "WARM: On the benefits of weight averaged reward models", section 3; Wortsman et al. 2022,
    "Model soups".
    """

    def load(folder: Path, dtype: Dtype) -> Any:
        if scores:
            return load_scorer(folder, dtype, attn_implementation, as_trained=False, kernels="none")
        return load_causal_lm(folder, dtype, attn_implementation, kernels="none")

    sums, tokenizer = _weighted_sums(folders, weights, lambda folder: load(folder, "float32"))
    model = load(folders[0], dtype)
    with torch.no_grad():
        for name, weight in model.state_dict().items():
            weight.copy_(sums[name] / sum(weights) if weight.is_floating_point() else sums[name])
    if scores:
        model.keep_moments(None)
    return model, tokenizer


def _weighted_sums(
    folders: Sequence[Path], weights: Sequence[float], load: Callable[[Path], Any]
) -> tuple[dict[str, Tensor], PreTrainedTokenizerBase]:
    """Return sum_i a_i w_i of every entry of the models' states, in float64, and the first one's tokenizer."""
    sums: dict[str, Tensor] = {}
    first: Any = None
    tokenizer = load_tokenizer(folders[0])
    for folder, weight in zip(folders, weights, strict=True):
        model = load(folder)
        state, network = model.state_dict(), getattr(model, "classifier", model)
        shapes = {name: tuple(each.shape) for name, each in state.items()}
        described = type(network).__name__, shapes, _computation(network.config.to_dict())
        first = first or described
        if described != first:
            raise UserError(f"average: {folders[0]} and {folder} differ in {_difference(first, described)}")
        _check_tokenizer(tokenizer, load_tokenizer(folder), folders[0], folder)
        for name, each in state.items():
            if each.is_floating_point():
                sums[name] = sums.get(name, 0) + each.detach().cpu().double() * weight
            elif not torch.equal(sums.setdefault(name, each.cpu()), each.cpu()):
                raise UserError(
                    f"average: {folders[0]} and {folder} differ in {name}, which is not a number to average"
                )
    return sums, tokenizer


def _computation(config: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in _NO_COMPUTATION}


def _difference(first: tuple[str, dict[str, Any], dict[str, Any]], other: tuple[str, Any, Any]) -> str:
    if first[0] != other[0]:
        return f"their architecture: {first[0]} and {other[0]}"
    for before, now in ((first[2], other[2]), (first[1], other[1])):
        for name in sorted({*before, *now}):
            if before.get(name) != now.get(name):
                return f"{name}: {before.get(name)} and {now.get(name)}"
    raise AssertionError("they are equal")


def _check_tokenizer(first: Any, other: Any, folder: Path, other_folder: Path) -> None:
    for what, of in (
        ("vocabulary", lambda tokenizer: tokenizer.get_vocab()),
        ("special tokens", lambda tokenizer: tokenizer.special_tokens_map),
        ("chat template", lambda tokenizer: tokenizer.chat_template),
    ):
        if of(first) != of(other):
            raise UserError(f"average: the tokenizers of {folder} and {other_folder} differ in their {what}")
