"""Switching off every source of noise in a network's training mode.

Policy and reference are compared token by token: with dropout on, the ratio of a policy to itself is not 1. The
training flag stays available for activation checkpointing, which reads it.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf_lightning.errors import UserError, named
from rlhf_lightning.models.forward import bare_model
from rlhf_lightning.models.rounding import ROUNDINGS, TOLERANCE, distance, roundoff
from rlhf_lightning.models.self_check import ordinary_tokens, untouched

# Families' names for the probability of a dropout or of skipping a layer, and for the noise of an expert router.
DROPOUT, NOISE = ("drop",), ("jitter", "noise")
TOKENS = 8


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout probability to 0, whatever its name and wherever it is stored, and check that it works.

    Probabilities are read from modules (`nn.Dropout.p`, `self.attention_dropout`) or, in some families, from the
    configuration; that stays unchanged, since it is saved with the model, and the layers read a copy.

    Raises:
        UserError: two forward passes in training mode still differ.
    """
    silence(model)
    if not training_differs(model):
        return
    _silence_noise(model)
    parts: list[Any] = [*model.modules()]
    for module in parts:
        config = getattr(module, "config", None)
        if config is not None and module is not bare_model(model) and not isinstance(config, WithoutDropout):
            module.config = WithoutDropout(config)
    if training_differs(model):
        bare: Any = bare_model(model)
        raise UserError(
            f"{named()}: {type(bare).__name__} (model_type {bare.config.model_type}) computes different values in "
            "training mode and in evaluation mode, or each time, even with every dropout probability at 0; DPO and "
            "PPO compare the two; choose another model"
        )


def silence(model: nn.Module) -> None:
    """Set every dropout probability stored in a module to 0."""
    _set_to_zero(model, DROPOUT)


def _silence_noise(model: nn.Module) -> None:
    """Set modules' noise settings to 0, unless evaluation changes: some are thresholds (PhiMoE's router)."""
    bare: Any = bare_model(model)
    with untouched(model), torch.no_grad():
        model.eval()
        ids = ordinary_tokens(model, TOKENS).unsqueeze(0)
        before = _result(bare, ids)
        changed = _set_to_zero(model, NOISE)
        after = _result(bare, ids)
    if not torch.equal(before, after):
        for module, name, value in changed:
            setattr(module, name, value)


def _set_to_zero(model: nn.Module, words: tuple[str, ...]) -> list[tuple[nn.Module, str, float]]:
    """Set the numbers that modules store under such names to 0; return their previous values."""
    changed = []
    for module in model.modules():
        is_dropout = words is DROPOUT and "dropout" in type(module).__name__.lower()
        for name, value in [*vars(module).items()]:
            named = any(word in name.lower() for word in words) or (is_dropout and name == "p")
            if isinstance(value, float) and named:
                changed.append((module, name, value))
                setattr(module, name, 0.0)
    return changed


def training_differs(model: nn.Module) -> bool:
    """Return whether a model's outputs in training mode differ from evaluation, or from one pass to the next."""
    bare: Any = bare_model(model)
    if not isinstance(bare, PreTrainedModel) or any(parameter.is_meta for parameter in bare.parameters()):
        return False
    with untouched(model), torch.no_grad():
        ids = ordinary_tokens(model, TOKENS).unsqueeze(0)
        model.eval()
        expected = _result(bare, ids)
        model.train()
        before = _random_states(ids.device)
        found = _result(bare, ids)
        allowed = roundoff(model, found)
        if found.shape[-1] == 1:  # a classifier's score, which is not a distribution
            wrong = not torch.allclose(found, expected, rtol=ROUNDINGS * allowed, atol=TOLERANCE)
        else:
            wrong = not distance(found, expected, allowed).small
        if wrong:
            return True
        if all(torch.equal(a, b) for a, b in zip(before, _random_states(ids.device), strict=True)):
            return False  # no random number was drawn
        return any(not torch.equal(found, _result(bare, ids)) for _ in range(4))


def _result(bare: Any, ids: Tensor) -> Tensor:
    try:
        out = bare(input_ids=ids, use_cache=False)
    except TypeError:  # from a family without a cache
        out = bare(input_ids=ids)
    result: Tensor = out.logits if "logits" in out else out.last_hidden_state
    return result


def _random_states(device: torch.device) -> list[Tensor]:
    numpy: Any = np.random.get_state()
    states = [torch.get_rng_state(), torch.tensor([*numpy[1].tolist(), numpy[2]]), torch.tensor(random.getstate()[1])]
    return states + ([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])


class WithoutDropout:
    """A configuration with every dropout probability read as 0. Writes go to the configuration itself."""

    def __init__(self, config: Any) -> None:
        object.__setattr__(self, "of", config)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "of" not in vars(self):
            raise AttributeError(name)
        value = getattr(self.of, name)
        return 0.0 if isinstance(value, float) and "drop" in name.lower() else value

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.of, name, value)
