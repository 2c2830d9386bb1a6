"""When a setting has no effect: conditions on a training config that the rules of `effects` are made of."""

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
    """Keys that nothing reads while a condition holds.

    Args:
        keys: dotted; one of a callback begins with `callbacks.*.`, and `when` gets the callback's section first.
        when: whether nothing reads them.
        why: the rest of the line: the reason, and what to do; `{algorithm}` is the name of its class.
        contradicts: it is worse than no effect, so that the values of `conf/` count, too.
    """

    keys: tuple[str, ...]
    when: Callable[..., Any]
    why: str
    contradicts: bool = False


def get(config: Config, key: str) -> Any:
    """The value at a dotted key, None where there is none."""
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def target(config: Config, section: str) -> str:
    return str(get(config, f"{section}._target_") or "")


def ours(config: Config) -> bool:
    """Whether the algorithm is one of ours: a class from outside may read what it likes."""
    return declaration(config).ours


def samples(config: Config) -> bool:
    """Whether the algorithm is one of ours that samples what it learns from."""
    return ours(config) and declaration(config).on_policy


def reads_rows(config: Config) -> bool:
    """Whether the algorithm says that it learns from rows, and not from what it samples."""
    return declaration(config).data not in (None, "prompts")


def compares(config: Config) -> bool:
    """Whether the algorithm is one of ours that compares the policy with a reference."""
    return ours(config) and "reference" in declaration(config).roles


def is_section_of_ours(key: str) -> When:
    return lambda config: target(config, key).startswith("rlhf_lightning.")


def validates(config: Config) -> bool:
    """Whether there will be a validation, as far as a data module of ours decides it."""
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
    """Whether there is a single step of each rollout, with the policy that sampled it."""
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


def deepspeed(config: Config) -> bool:
    strategy = get(config, "trainer.strategy")
    name = strategy.get("_target_", "") if isinstance(strategy, Mapping) else strategy
    return "deepspeed" in str(name).lower()


def no_time(config: Config) -> bool:
    """Whether `trainer.max_time` (DD:HH:MM:SS, or the arguments of a timedelta) is over at once."""
    given = get(config, "trainer.max_time")
    parts = given.split(":") if isinstance(given, str) else given.values() if isinstance(given, Mapping) else [1]
    try:
        return not any(float(part) for part in parts)
    except (TypeError, ValueError):
        return False


def part_of_a_rollout(key: str, *whole: Any) -> When:
    """Whether minibatches would be left out; 1.0 is all batches, 1 a single one."""

    def partly(config: Config) -> bool:
        value = get(config, key)
        return declaration(config).on_policy and not any(value == each and type(value) is type(each) for each in whole)

    return partly


def kl_kind(*kinds: str) -> When:
    return both(is_section_of_ours("algorithm.kl"), equals("algorithm.kl.kind", *kinds))


def local_model(config: Config) -> bool:
    return Path(str(get(config, "model.path"))).expanduser().is_dir()
