"""Settings of rlhf-evaluate that nothing reads beside the others: refused, so that nobody relies on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf_lightning.config.config_files import shipped
from rlhf_lightning.errors import UserError
from rlhf_lightning.judging.settings import DEFAULTS

_OF_SAMPLES = (
    *("gold", "proxy", "reward", "judge", "embeddings", "refusals", "refusal_detector"),
    *("best_of", "course", "self_bleu"),
)
_OF_SAMPLING = ("reference", "samples_per_prompt", "max_new_tokens", "temperature")
_OF_POLICIES = ("harness", "batch_size", "seed", "dtype", "attn_implementation", "ilql_beta")


def check_evaluation_effects(config: Mapping[str, Any]) -> None:
    """Raise UserError for the first setting without an effect.

    Args:
        config: of rlhf-evaluate, valid under its schema; policies and prompts are None where they are left out.
    """
    given = shipped("evaluate")
    if config["prompts"] is None:
        why = "nothing is sampled without prompts and baseline; give both, or leave it out"
        _refuse(config, given, (*_OF_SAMPLES, *_OF_SAMPLING), why)
    if config["policies"] is None:
        _refuse(config, given, _OF_POLICIES, "there are no policies that it could be about; leave it out")
    if config.get("preferences") is None:
        _refuse(config, given, ("category",), "only preferences have categories; leave it out")
    for key in ("gold", "proxy"):
        reward = config.get(key) or {}
        if not (reward.get("function") or reward.get("model")):
            _refuse(config, given, (key,), f"there is no {key}.function or {key}.model that reads it; leave it out")
    judge = config.get("judge") or {}
    if not any(judge.get(name) for name in ("model", "url")):
        why = "only a judge that is a model reads it; give judge.model, or leave it out"
        _refuse(config, {"judge": {**DEFAULTS, "function": judge.get("function")}}, ("judge",), why)


def _refuse(config: Mapping[str, Any], given: Mapping[str, Any], keys: tuple[str, ...], why: str) -> None:
    """Raise UserError for a key whose value differs from the given one."""
    for key in keys:
        value, usual = config.get(key), given[key]
        if isinstance(usual, Mapping):
            _refuse_part(key, value or {}, usual, why)
        elif value is not None and value != usual:
            raise UserError(f"{key}: {why}")


def _refuse_part(key: str, section: Mapping[str, Any], usual: Mapping[str, Any], why: str) -> None:
    for name, value in section.items():
        if value != usual.get(name):
            raise UserError(f"{key}.{name}: {why}")
