"""When a setting has no effect: the conditions on a training config from which the rules of `effects` are built."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_lightning.source.constructors import setting
from rlhf_lightning.source.declarations import declaration

Config = Mapping[str, Any]
When = Callable[[Config], Any]


@dataclass(frozen=True)
class Rule:
    """Keys that have no effect while a condition holds.

    Args:
        keys: dotted; a callback's key begins with `callbacks.*.`, and `when` gets the callback's section first.
        when: returns whether they have no effect.
        why: the rest of the line: the reason, and what to do; `{algorithm}` is the name of its class.
        contradicts: worse than no effect, so values from `conf/` count too.
    """

    keys: tuple[str, ...]
    when: Callable[..., Any]
    why: str
    contradicts: bool = False


def get(config: Config, key: str) -> Any:
    """Return the value at a dotted key; None if there is none."""
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def target(config: Config, section: str) -> str:
    return str(get(config, f"{section}._target_") or "")


def ours(config: Config) -> bool:
    """Return whether the algorithm is this package's: a user's own class may read any key."""
    return declaration(config).ours


def samples(config: Config) -> bool:
    """Return whether the algorithm is this package's and samples what it learns from."""
    return ours(config) and declaration(config).on_policy


def reads_rows(config: Config) -> bool:
    """Return whether the algorithm declares that it learns from rows rather than from samples."""
    return declaration(config).data not in (None, "prompts")


def compares(config: Config) -> bool:
    """Return whether the algorithm is this package's and compares the policy with a reference."""
    return ours(config) and "reference" in declaration(config).roles


def is_section_of_ours(key: str) -> When:
    return lambda config: target(config, key).startswith("rlhf_lightning.")


def validates(config: Config) -> bool:
    """Return whether there will be a validation, as far as this package's data modules decide it."""
    data = config["data"]
    if not str(data.get("_target_", "")).startswith("rlhf_lightning.data."):
        return True
    return bool(data.get("val") is not None or data.get("val_fraction"))


def equals(key: str, *values: Any) -> When:
    return lambda config: get(config, key) in values


def without(key: str) -> When:
    return lambda config: not get(config, key)


def both(*conditions: When) -> When:
    return lambda config: all(condition(config) for condition in conditions)


def one_step(config: Config) -> bool:
    """Return whether each rollout gets a single step, with the policy that sampled it."""
    algorithm = config["algorithm"]
    return samples(config) and setting(algorithm, "ppo_epochs", 1) * setting(algorithm, "num_minibatches", 1) == 1


def no_kl_term(config: Config) -> bool:
    kl = get(config, "algorithm.kl") or {}
    return kl.get("kind") == "fixed" and kl.get("coef") == 0


def longer(config: Config) -> bool:
    prompt, whole = get(config, "data.max_prompt_length"), get(config, "data.max_length")
    return None not in (prompt, whole) and prompt >= whole


def above(key: str, other: str) -> When:
    def is_above(config: Config) -> bool:
        value, limit = get(config, key), get(config, other)
        return isinstance(value, int) and isinstance(limit, int) and limit > 0 and value > limit

    return is_above


def fewer_steps(config: Config) -> bool:
    """Return whether the epochs of an algorithm that samples have fewer optimiser steps than `trainer.min_steps`."""
    least, epochs = get(config, "trainer.min_steps"), get(config, "trainer.max_epochs")
    if not samples(config) or not isinstance(least, int) or not isinstance(epochs, int) or epochs < 0:
        return False
    algorithm = config["algorithm"]
    each = setting(algorithm, "ppo_epochs", 1) * setting(algorithm, "num_minibatches", 1)
    return isinstance(each, int) and least > epochs * each


def scores_one_by_one(section: str) -> When:
    """Return a condition: the scores come from functions of this process, or a judge."""

    def no_batches(config: Config) -> bool:
        given = get(config, section) or {}
        parts = [given, *(given.get("components") or {}).values()]
        batched = any(part.get(key) for part in parts for key in ("model", "models", "url"))
        return target(config, section).startswith("rlhf_lightning.") and not batched

    return no_batches


def deepspeed(config: Config) -> bool:
    strategy = get(config, "trainer.strategy")
    name = strategy.get("_target_", "") if isinstance(strategy, Mapping) else strategy
    return "deepspeed" in str(name).lower()


def shards(config: Config) -> bool:
    """Return whether each process holds only a part of the weights: FSDP, or ZeRO-3."""
    strategy = get(config, "trainer.strategy")
    name = str(strategy.get("_target_", "") if isinstance(strategy, Mapping) else strategy).lower()
    stage = strategy.get("stage") if isinstance(strategy, Mapping) else None
    return any(part in name for part in ("fsdp", "sharded", "modelparallel", "stage_3")) or (
        deepspeed(config) and stage == 3
    )


def no_time(config: Config) -> bool:
    """Return whether `trainer.max_time` (DD:HH:MM:SS, or the arguments of a timedelta) is zero."""
    given = get(config, "trainer.max_time")
    parts = given.split(":") if isinstance(given, str) else given.values() if isinstance(given, Mapping) else [1]
    try:
        return not any(float(part) for part in parts)
    except (TypeError, ValueError):
        return False


def part_of_a_rollout(key: str, *whole: Any) -> When:
    """Return a condition: minibatches would be skipped; 1.0 means all batches, 1 a single one."""

    def partly(config: Config) -> bool:
        value = get(config, key)
        return declaration(config).on_policy and not any(value == each and type(value) is type(each) for each in whole)

    return partly


def kl_kind(*kinds: str) -> When:
    return both(is_section_of_ours("algorithm.kl"), equals("algorithm.kl.kind", *kinds))


def local_model(config: Config) -> bool:
    return Path(str(get(config, "model.path"))).expanduser().is_dir()
