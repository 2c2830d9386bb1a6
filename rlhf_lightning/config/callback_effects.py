"""Settings of callbacks that have no effect next to others: the callback rules of `effects`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rlhf_lightning.config.conditions import Config, Rule, ours, reads_rows, shards, validates
from rlhf_lightning.source.constructors import setting
from rlhf_lightning.source.declarations import declaration


def _kind(*names: str) -> Callable[[Config, Config], bool]:
    return lambda section, config: str(section.get("_target_", "")).rpartition(".")[2] in names


def _saves(condition: Callable[[Config, Config], Any]) -> Callable[[Config, Config], Any]:
    """Return a condition on callbacks like Lightning's ModelCheckpoint."""
    return lambda section, config: (
        str(section.get("_target_", "")).endswith(("ModelCheckpoint", "ResumableCheckpoint"))
        and condition(section, config)
    )


def _is_trained_on(section: Config, config: Config) -> bool:
    """Return whether one of the scorers is the reward itself, or a weighted part of it."""
    reward = config.get("reward") or {}
    parts = [reward, *(part for part in (reward.get("components") or {}).values() if part.get("weight", 1))]
    trained = {(key, part[key]) for part in parts for key in ("function", "model") if part.get(key)}
    trained |= {("function", path) for path in reward.get("functions") or ()}
    trained |= {("model", path) for part in parts for path in part.get("models") or ()}
    judges = [_asked(part["judge"]) for part in parts if part.get("judge")]
    scorers = section.get("scorers") if isinstance(section.get("scorers"), Mapping) else {}
    given = [each for each in (scorers or {}).values() if isinstance(each, Mapping)]
    return any((key, each.get(key)) in trained for each in given for key in ("function", "model")) or any(
        _asked(each["judge"]) in judges for each in given if each.get("judge")
    )


def _asked(judge: Config) -> tuple[Any, ...]:
    """Return which model a judge asks, and by which principles."""
    return tuple(judge.get(name) for name in ("url", "model", "constitution"))


_TRIGGERS = ("every_n_epochs", "every_n_train_steps", "train_time_interval")

CALLBACK_RULES: tuple[Rule, ...] = (
    Rule(
        ("callbacks.*.monitor",),
        lambda section, c: str(section.get("monitor")).startswith("val/") and not validates(c),
        "it is never logged: nothing is validated; give data.val or data.val_fraction, or monitor another metric",
        contradicts=True,
    ),
    Rule(
        ("callbacks.*.monitor",),
        lambda section, c: (
            str(section.get("monitor")).startswith("rollout/group_")
            and setting(c.get("rollout") or {}, "samples_per_prompt", 1) == 1
        ),
        "it is never logged: there is one response per prompt; raise rollout.samples_per_prompt, or monitor another "
        "metric",
        contradicts=True,
    ),
    Rule(
        ("callbacks.*.mode",),
        _saves(lambda section, c: not section.get("monitor") and section.get("mode") == "max"),
        "nothing is monitored; set monitor, or leave it out",
        contradicts=True,
    ),
    Rule(
        ("callbacks.*.save_top_k",),
        _saves(lambda section, c: not section.get("monitor") and section.get("save_top_k", 1) not in (-1, 0, 1)),
        "nothing is monitored, so no checkpoint is better than another; set monitor, or choose -1 (all) or 0 "
        "(last.ckpt alone)",
        contradicts=True,
    ),
    Rule(
        ("callbacks.*.save_last", "callbacks.*.save_top_k"),
        _saves(lambda section, c: section.get("save_top_k") == 0 and not section.get("save_last")),
        "nothing would be saved; set save_last=true or save_top_k, or switch the callback off with null",
        contradicts=True,
    ),
    Rule(
        ("callbacks.*.every_n_train_steps", "callbacks.*.train_time_interval"),
        _saves(lambda section, c: not declaration(c).saves_mid_epoch),
        "{algorithm} is checkpointed at the end of an iteration; use every_n_epochs",
        contradicts=True,
    ),
    Rule(
        ("callbacks.*.every_n_train_steps", "callbacks.*.train_time_interval"),
        _saves(lambda section, c: sum(bool(section.get(name)) for name in _TRIGGERS) > 1),
        "every_n_epochs, every_n_train_steps and train_time_interval exclude each other; set the others to null",
        contradicts=True,
    ),
    Rule(
        ("callbacks.*.train_time_interval",),
        _saves(lambda section, c: not isinstance(section.get("train_time_interval"), Mapping)),
        "must be a section, {_target_: datetime.timedelta, minutes: 30}",
        contradicts=True,
    ),
    Rule(
        ("callbacks.*.save_on_exception",),
        _saves(lambda section, c: True),
        "an exception interrupts a step, and no run can resume exactly from there; leave it out",
    ),
    Rule(
        ("callbacks.*._target_",),
        _kind("OnExceptionCheckpoint"),
        "it saves in the middle of a step, from which no run can resume exactly, and makes Lightning resume without "
        "being asked; callbacks.checkpoint keeps the last good checkpoint",
        contradicts=True,
    ),
    Rule(
        ("callbacks.*._target_",),
        lambda section, c: _kind("SampleTable")(section, c) and ours(c) and reads_rows(c),
        "{algorithm} samples no responses; set this callback to null",
        contradicts=True,
    ),
    Rule(
        ("callbacks.*._target_",),
        lambda section, c: _kind("OverOptimization")(section, c) and ours(c) and reads_rows(c),
        "{algorithm} samples no responses; set this callback to null",
        contradicts=True,
    ),
    Rule(
        ("callbacks.*._target_",),
        lambda section, c: _kind("OverOptimization")(section, c) and not validates(c),
        "nothing is validated, so there are no responses to held-out prompts; give data.val or data.val_fraction",
        contradicts=True,
    ),
    Rule(
        ("callbacks.*.scorers",),
        lambda section, c: _kind("OverOptimization")(section, c) and _is_trained_on(section, c),
        "it scores with the reward that is trained on, which cannot see its own faults; give another function, a model "
        "or a judge",
        contradicts=True,
    ),
    Rule(
        ("callbacks.*.kl_factor", "callbacks.*.kl_target", "callbacks.*.entropy_factor"),
        lambda section, c: _kind("Guardrails")(section, c) and ours(c) and reads_rows(c),
        "{algorithm} samples no responses whose KL or entropy could be watched; leave it out",
    ),
    Rule(
        ("callbacks.*.dirpath",),
        lambda section, c: _kind("StopOnSigterm")(section, c) and not declaration(c).saves_mid_epoch,
        "{algorithm} saves nothing within an iteration; leave it out",
    ),
    Rule(
        ("callbacks.*._target_",),
        lambda section, c: _kind("TrainableAverage")(section, c) and shards(c),
        "it cannot average sharded parameters; choose trainer=ddp, or set this callback to null",
        contradicts=True,
    ),
    Rule(
        ("callbacks.*.export",),
        lambda section, c: (
            _kind("TrainableAverage")(section, c) and section["export"] is False and not section.get("validate")
        ),
        "beside validate=false nothing uses the average; set one of the two to true, or the callback to null",
        contradicts=True,
    ),
    Rule(
        ("callbacks.*.validate",),
        lambda section, c: _kind("TrainableAverage")(section, c) and section["validate"] and not validates(c),
        "nothing is validated; give data.val or data.val_fraction, or set it to false",
        contradicts=True,
    ),
)
