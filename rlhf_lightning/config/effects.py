"""Settings that have no effect next to others: refused, so that nobody relies on them.

The rules are in `effect_rules` and `callback_effects`. A value counts as set unless it is null or is a value that
a file in `conf/` gives that key: changing one key of an experiment does not set its others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rlhf_lightning.config.callback_effects import CALLBACK_RULES
from rlhf_lightning.config.conditions import (
    Config,
    Rule,
    get,
    target,
)
from rlhf_lightning.config.effect_rules import RULES
from rlhf_lightning.config.shipped_values import shipped_values
from rlhf_lightning.errors import UserError
from rlhf_lightning.source.declarations import declaration


def check_effects(config: Config) -> None:
    """Raise UserError for the first setting that has no effect next to the others.

    Args:
        config: a training config that is valid under the schema.
    """
    _check_targets(config)
    for key, value, rule in _findings(config):
        why = rule.why.replace("{algorithm}", declaration(config).name)
        raise UserError(f"{key}: found {_shown(value)}; {why}")
    callbacks = config.get("callbacks") or {}
    saves = any(str((section or {}).get("_target_", "")).endswith("Checkpoint") for section in callbacks.values())
    if get(config, "trainer.enable_checkpointing") is False and saves:
        raise UserError(
            "trainer.enable_checkpointing: found false beside callbacks.checkpoint; set the callback to null"
        )
    if get(config, "trainer.enable_progress_bar") is False and callbacks.get("progress"):
        raise UserError("trainer.enable_progress_bar: found false beside callbacks.progress; set the callback to null")
    if get(config, "trainer.enable_checkpointing") is True and not saves:
        raise UserError("trainer.enable_checkpointing: found true, but no callback saves; choose callbacks=default")


def check_samples(settings: Config, prefix: str = "") -> None:
    """Raise UserError if an evaluation would draw the most likely answer several times."""
    samples = settings.get("samples_per_prompt", 1)
    if settings.get("temperature") == 0 and samples > 1:
        raise UserError(
            f"{prefix}samples_per_prompt: found {samples}; with {prefix}temperature=0 all answers to a prompt are the "
            "same; set it to 1, or raise the temperature"
        )


def _findings(config: Config) -> Iterator[tuple[str, Any, Rule]]:
    """Yield every key that is set and that a rule covers."""
    for rule in RULES:
        for key in rule.keys:
            if _is_set(config, key, value := get(config, key), rule) and rule.when(config):
                yield key, value, rule
    for name, section in (config.get("callbacks") or {}).items():
        for rule in CALLBACK_RULES if isinstance(section, Mapping) else ():
            for key in rule.keys:
                value = section.get(key.rpartition(".")[2])
                if _is_set(config, key, value, rule) and rule.when(section, config):
                    yield key.replace("*", str(name)), value, rule


def _is_set(config: Config, key: str, value: Any, rule: Rule) -> bool:
    if value is None or (key, value) == ("trainer.limit_val_batches", 0):  # it means: no validation
        return False
    if rule.contradicts:
        return True
    given = shipped_values(target(config, "algorithm")).get(key)
    return value not in given if given else bool(value)


_SECTIONS = (
    "model.adapter",
    "model.quantization",
    "scheduler",
    "logger",
    "prepare",
    "rollout",
    "reward",
    "cost",
    "optimizer",
)


def _check_targets(config: Config) -> None:
    """Raise UserError for a section without a class, which is never built: its option is `none`."""
    callbacks = tuple(f"callbacks.{name}" for name in config.get("callbacks") or {})
    for key in (*_SECTIONS, *callbacks):
        section = get(config, key)
        if isinstance(section, Mapping) and section and not section.get("_target_"):
            names = ", ".join(f"{key}.{name}" for name in section)
            group = key.replace(".", "/") if not key.startswith("callbacks.") else "callbacks"
            raise UserError(f"{names}: nothing reads it, because {key} has no _target_; choose {group}=<option> first")


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return "a section"
    return str(value).lower() if isinstance(value, bool) else str(value)
