"""The settings of a judge, shared by `rlhf-judge` and `reward.judge`, and their checks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict

from rlhf_lightning.addresses import check_address, read_key
from rlhf_lightning.errors import UserError
from rlhf_lightning.judging.cache import check_cache
from rlhf_lightning.value_types import LARGEST, Attention, Count, Dtype, NonNegative, Seconds, Text

PerMinute = Annotated[float, Field(ge=0.001, le=LARGEST)]  # one per 17 hours or more


@with_config(ConfigDict(extra="forbid", strict=True, allow_inf_nan=False))
class JudgeSettings(TypedDict, total=False):
    """Who judges, and how.

    Attributes:
        model: a run folder, a Hugging Face folder or a hub name; with `url`, the model's name at the endpoint.
        url: address up to `/v1` of an endpoint for OpenAI's chat completions; None: the model runs in this process.
        by: `logprobs` of the verdicts, or `reasons`: a generated verdict.
        constitution: a YAML file of principles; None: the one that comes with the package.
        cache: an SQLite file for answers; None: answers are not stored.
        batch_size, dtype, attn_implementation: for a model in this process.
        max_new_tokens, temperature: for generated text.
        key_env: the environment variable that holds the endpoint's key.
        per_minute: the most requests per minute; None: no limit.
        parallel, attempts, timeout: simultaneous requests, attempts per request, seconds per attempt.
        prompt_price, completion_price: price per million tokens, to report the cost.
    """

    model: Text | None
    url: Text | None
    by: Literal["logprobs", "reasons"]
    constitution: Text | None
    cache: Text | None
    batch_size: Count
    dtype: Dtype
    attn_implementation: Attention | None
    max_new_tokens: Count
    temperature: NonNegative
    key_env: Text | None
    per_minute: PerMinute | None
    parallel: Count
    attempts: Count
    timeout: Seconds
    prompt_price: NonNegative | None
    completion_price: NonNegative | None


DEFAULTS: JudgeSettings = {
    "model": None,
    "url": None,
    "by": "logprobs",
    "constitution": None,
    "cache": "outputs/judge_cache.db",
    "batch_size": 8,
    "dtype": "float32",
    "attn_implementation": None,
    "max_new_tokens": 512,
    "temperature": 0.0,
    "key_env": None,
    "per_minute": None,
    "parallel": 8,
    "attempts": 6,
    "timeout": 120.0,
    "prompt_price": None,
    "completion_price": None,
}
_OF_ENDPOINTS = ("key_env", "per_minute", "parallel", "attempts", "timeout", "prompt_price", "completion_price")
_OF_MODELS = ("batch_size", "dtype", "attn_implementation")


def check_judge(settings: Mapping[str, Any], prefix: str = "judge.", generates: bool = False) -> None:
    """Raise UserError for problems that can be found without loading anything.

    Args:
        settings: the given settings.
        prefix: what the user writes before their names.
        generates: whether text is generated regardless of `by`.
    """
    given: dict[str, Any] = {**DEFAULTS, **settings}
    url = given["url"]
    if not given["model"]:
        raise UserError(
            f"{prefix}model: missing; give a run folder, a Hugging Face folder or a hub name, or with {prefix}url the "
            "model's name there"
        )
    if url:
        check_address(f"{prefix}url", url, "http://localhost:8000/v1")
    for name in _OF_MODELS if url else _OF_ENDPOINTS:
        if given[name] != DEFAULTS[name]:  # type: ignore[literal-required]
            why = f"the model runs behind {prefix}url" if url else f"there is no {prefix}url"
            raise UserError(f"{prefix}{name}: it has no effect here, as {why}; leave it out")
    for name in ("max_new_tokens", "temperature"):
        if given["by"] == "logprobs" and not generates and given[name] != DEFAULTS[name]:  # type: ignore[literal-required]
            raise UserError(f"{prefix}{name}: nothing is generated; leave it out, or choose {prefix}by=reasons")
    if given["key_env"]:
        read_key(f"{prefix}key_env", given["key_env"])
    if given["constitution"]:
        _check_constitution(Path(given["constitution"]), f"{prefix}constitution")
    if given["cache"]:
        check_cache(Path(given["cache"]), f"{prefix}cache")


def _check_constitution(path: Path, key: str) -> None:
    if os.path.isfile(path):  # unlike Path's, it accepts any text
        return
    found = "is a folder" if os.path.isdir(path) else "is not a file" if os.path.exists(path) else "does not exist"
    raise UserError(f"{key}: {path} {found}; give a YAML file of principles")
