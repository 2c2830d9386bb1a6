"""Settings that have no effect beside others: refused, so that nobody believes in them.

Each rule names the keys, when nothing reads them, and why. A value counts as set unless it is null, or one that a file
in `conf/` gives that key: who takes an experiment and changes one key of it has not set the others.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from rlhf_lightning.config.config_files import conf_dir
from rlhf_lightning.errors import UserError
from rlhf_lightning.source.constructors import setting
from rlhf_lightning.source.declarations import declaration
from rlhf_lightning.tracking.store import uses_mlflow

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


def _get(config: Config, key: str) -> Any:
    """The value at a dotted key, None where there is none."""
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _target(config: Config, section: str) -> str:
    return str(_get(config, f"{section}._target_") or "")


def _ours(config: Config) -> bool:
    """Whether the algorithm is one of ours: a class from outside may read what it likes."""
    return declaration(config).ours


def _samples(config: Config) -> bool:
    """Whether the algorithm is one of ours that samples what it learns from."""
    return _ours(config) and declaration(config).on_policy


def _reads_rows(config: Config) -> bool:
    """Whether the algorithm says that it learns from rows, and not from what it samples."""
    return declaration(config).data not in (None, "prompts")


def _compares(config: Config) -> bool:
    """Whether the algorithm is one of ours that compares the policy with a reference."""
    return _ours(config) and "reference" in declaration(config).roles


def _is_section_of_ours(key: str) -> When:
    return lambda config: _target(config, key).startswith("rlhf_lightning.")


def _validates(config: Config) -> bool:
    """Whether there will be a validation, as far as a data module of ours decides it."""
    data = config["data"]
    if not str(data.get("_target_", "")).startswith("rlhf_lightning.data."):
        return True
    return not _samples(config) and bool(data.get("val") is not None or data.get("val_fraction"))


def _equals(key: str, *values: Any) -> When:
    return lambda config: _get(config, key) in values


def _without(key: str) -> When:
    return lambda config: not _get(config, key)


def _both(*conditions: When) -> When:
    return lambda config: all(condition(config) for condition in conditions)


def _one_step(config: Config) -> bool:
    """Whether there is a single step of each rollout, with the policy that sampled it."""
    algorithm = config["algorithm"]
    return _samples(config) and setting(algorithm, "ppo_epochs", 1) * setting(algorithm, "num_minibatches", 1) == 1


def _no_kl_term(config: Config) -> bool:
    kl = _get(config, "algorithm.kl") or {}
    return kl.get("kind") == "fixed" and kl.get("coef") == 0


def _longer(config: Config) -> bool:
    prompt, whole = _get(config, "data.max_prompt_length"), _get(config, "data.max_length")
    return None not in (prompt, whole) and prompt >= whole


def _above(key: str, other: str) -> When:
    def above(config: Config) -> bool:
        value, limit = _get(config, key), _get(config, other)
        return isinstance(value, int) and isinstance(limit, int) and limit > 0 and value > limit

    return above


def _deepspeed(config: Config) -> bool:
    strategy = _get(config, "trainer.strategy")
    name = strategy.get("_target_", "") if isinstance(strategy, Mapping) else strategy
    return "deepspeed" in str(name).lower()


def _no_time(config: Config) -> bool:
    """Whether `trainer.max_time` (DD:HH:MM:SS, or the arguments of a timedelta) is over at once."""
    given = _get(config, "trainer.max_time")
    parts = given.split(":") if isinstance(given, str) else given.values() if isinstance(given, Mapping) else [1]
    try:
        return not any(float(part) for part in parts)
    except (TypeError, ValueError):
        return False


def _part_of_a_rollout(key: str, *whole: Any) -> When:
    """Whether minibatches would be left out; 1.0 is all batches, 1 a single one."""

    def partly(config: Config) -> bool:
        value = _get(config, key)
        return declaration(config).on_policy and not any(value == each and type(value) is type(each) for each in whole)

    return partly


def _kl_kind(*kinds: str) -> When:
    return _both(_is_section_of_ours("algorithm.kl"), _equals("algorithm.kl.kind", *kinds))


def _local_model(config: Config) -> bool:
    return Path(str(_get(config, "model.path"))).expanduser().is_dir()


_NO_VALIDATION = "nothing is validated; give data.val or data.val_fraction, or leave it out"
_VALIDATES_NOTHING = "{algorithm} validates nothing; leave it out"
_NO_DROPOUT = "{algorithm} switches every dropout off, so that it compares with its reference exactly; leave it out"
_ONE_STEP = "with a single step per rollout (ppo_epochs=1 num_minibatches=1) the policy is still the one that sampled"
_MAX_TIME = "give a time as DD:HH:MM:SS, or null"
_WHOLE_ROLLOUTS = (
    "{algorithm} would leave out minibatches of every rollout; leave it at its default, and for a shorter run lower "
    "rollout.batch_size or trainer.max_epochs"
)
_VALIDATION_KEYS = (
    *("trainer.val_check_interval", "trainer.check_val_every_n_epoch", "trainer.num_sanity_val_steps"),
    *("trainer.inference_mode", "trainer.limit_val_batches"),
)

RULES: tuple[Rule, ...] = (
    # ---- the top
    Rule(("reward", "rollout"), _reads_rows, "{algorithm} learns from rows and does not sample; set it to null"),
    Rule(("resume_anyway",), _without("ckpt"), "nothing is resumed; give ckpt=last, or leave it out"),
    # ---- model
    Rule(("model.dropout", "model.adapter.dropout"), _compares, _NO_DROPOUT),
    Rule(("model.revision",), _local_model, "a folder has no revisions; only a name on the hub does"),
    # ---- data
    Rule(("data.val_batch_size",), lambda c: not _validates(c), _NO_VALIDATION),
    Rule(
        ("data.max_prompt_length",),
        _longer,
        "prompt and answer together have data.max_length tokens; choose a smaller number, or null",
        contradicts=True,
    ),
    # ---- optimiser and schedule
    Rule(
        ("optimizer.dampening", "optimizer.nesterov"),
        _both(_equals("optimizer._target_", "torch.optim.SGD"), _without("optimizer.momentum")),
        "there is no momentum; set optimizer.momentum, or leave it out",
    ),
    Rule(
        ("optimizer.dampening",), _equals("optimizer.nesterov", True), "Nesterov momentum has none; set one of the two"
    ),
    Rule(
        ("optimizer.foreach", "optimizer.differentiable"),
        _equals("optimizer.fused", True),
        "a fused optimiser is neither; set optimizer.fused=null, or leave it out",
    ),
    Rule(
        ("optimizer.fused",),
        _both(_equals("optimizer.fused", True), _equals("trainer.precision", "16-mixed")),
        "it divides the gradients by the loss scale itself, so that they cannot be clipped; set it to null, or choose "
        "trainer.precision=bf16-mixed",
        contradicts=True,
    ),
    Rule(
        ("optimizer.fused",),
        _both(_equals("optimizer.fused", True), _equals("trainer.accelerator", "tpu")),
        "TPUs have no fused optimiser",
        contradicts=True,
    ),
    Rule(
        ("optimizer.capturable",),
        _equals("trainer.accelerator", "cpu"),
        "only CUDA graphs need it; leave it out on a CPU",
    ),
    Rule(
        ("scheduler.last_epoch",),
        lambda c: _get(c, "scheduler.last_epoch") != -1,
        "a resumed run knows its step: use ckpt",
    ),
    # ---- trainer
    Rule(
        ("matmul_precision",),
        _equals("trainer.accelerator", "cpu"),
        "it is about products on a GPU; leave it out",
    ),
    *(
        Rule((key,), _equals(key, 0), "with 0 nothing is trained; give 1 or more, or leave it out", contradicts=True)
        for key in ("trainer.max_epochs", "trainer.max_steps", "trainer.limit_train_batches")
    ),
    Rule(("trainer.max_time",), _no_time, f"nothing would be trained; {_MAX_TIME}", contradicts=True),
    Rule(
        ("trainer.min_epochs",),
        _above("trainer.min_epochs", "trainer.max_epochs"),
        "trainer.max_epochs ends the run before",
        contradicts=True,
    ),
    Rule(
        ("trainer.min_steps",),
        _above("trainer.min_steps", "trainer.max_steps"),
        "trainer.max_steps ends the run before",
        contradicts=True,
    ),
    Rule(
        ("trainer.gradient_clip_algorithm",),
        _without("trainer.gradient_clip_val"),
        "nothing is clipped; set trainer.gradient_clip_val, or leave it out",
    ),
    Rule(
        ("trainer.gradient_clip_algorithm",),
        _both(_deepspeed, _equals("trainer.gradient_clip_algorithm", "value")),
        "DeepSpeed clips by the norm only",
        contradicts=True,
    ),
    Rule(_VALIDATION_KEYS, _samples, _VALIDATES_NOTHING),
    Rule(_VALIDATION_KEYS, lambda c: not _validates(c), _NO_VALIDATION),
    Rule(
        ("trainer.overfit_batches",),
        lambda c: str(c["data"].get("_target_", "")).startswith("rlhf_lightning.data."),
        "our loaders take other rows in every epoch, so nothing would be overfitted; use data.limit=<rows>",
    ),
    Rule(("trainer.reload_dataloaders_every_n_epochs",), lambda c: True, "rows are read once, before training"),
    Rule(("trainer.sync_batchnorm",), lambda c: True, "language models have no batch norm"),
    # ---- algorithms that sample
    Rule(
        ("algorithm.kl.placement", "algorithm.kl.estimator"),
        _no_kl_term,
        "with algorithm.kl.kind=fixed and coef=0 there is no KL term; leave it out",
    ),
    Rule(
        ("algorithm.kl.target", "algorithm.kl.horizon"),
        _kl_kind("fixed"),
        "algorithm.kl.kind=fixed has none; leave it out, or choose algorithm.kl.kind=adaptive",
    ),
    Rule(
        ("algorithm.kl.horizon",),
        _kl_kind("multiplicative", "pid"),
        "only algorithm.kl.kind=adaptive has one; leave it out, or choose that kind",
    ),
    Rule(
        ("algorithm.kl.kp", "algorithm.kl.ki", "algorithm.kl.kd"),
        _kl_kind("adaptive", "multiplicative", "fixed"),
        "only algorithm.kl.kind=pid has gains; leave it out, or choose that kind",
    ),
    Rule(
        ("data.val", "data.val_fraction"),
        lambda c: _samples(c) and (_get(c, "data.val") is not None or _get(c, "data.val_fraction")),
        "{algorithm} has no validation; set it to null (data.val) or 0 (data.val_fraction), and compare policies on "
        "held-out prompts with rlhf-evaluate",
        contradicts=True,
    ),
    Rule(
        ("trainer.limit_train_batches",),
        _part_of_a_rollout("trainer.limit_train_batches", 1.0),
        _WHOLE_ROLLOUTS,
        contradicts=True,
    ),
    Rule(
        ("trainer.overfit_batches",),
        _part_of_a_rollout("trainer.overfit_batches", 0.0, 0),
        _WHOLE_ROLLOUTS,
        contradicts=True,
    ),
    Rule(
        ("algorithm.target_kl",),
        _one_step,
        "an iteration has one optimiser step and nothing to stop; set it to null, or raise algorithm.ppo_epochs or "
        "algorithm.num_minibatches",
    ),
    Rule(
        ("algorithm.ptx.data",),
        _both(_is_section_of_ours("algorithm.ptx"), _without("algorithm.ptx.coef")),
        "algorithm.ptx.coef=0 leaves it out; give a coefficient, or set it to null",
    ),
    # ---- reward and rollout
    Rule(
        ("algorithm.ptx.batch_size", "algorithm.ptx.max_length"),
        _both(_is_section_of_ours("algorithm.ptx"), _without("algorithm.ptx.coef")),
        "algorithm.ptx.coef is 0, so no pretraining text is mixed in; set it, or leave this out",
    ),
    Rule(
        ("algorithm.value_clip_range",),
        _both(_ours, _equals("algorithm.value_coef", 0)),
        "with algorithm.value_coef=0 no value function is learned; leave it out",
    ),
    Rule(
        ("algorithm.clip_range", "algorithm.value_clip_range"),
        _both(_one_step, _equals("algorithm.old_logprobs", "trainer", None)),
        f"{_ONE_STEP}, so nothing is clipped; leave it out",
    ),
    Rule(
        ("algorithm.importance_cap",),
        _both(_ours, _equals("rollout.engine", "native")),
        "rollout=native samples with the trainer's own probabilities, so there is nothing to weigh; set it to null",
    ),
    Rule(
        ("reward.standardize",),
        _both(_ours, _equals("reward.standardize", True), _equals("algorithm.shaping.normalize", True)),
        "algorithm.shaping.normalize takes mean and scale out again; set one of the two",
        contradicts=True,
    ),
    Rule(
        ("rollout.generation_batch_size",),
        _above("rollout.generation_batch_size", "rollout.batch_size"),
        "an iteration has only rollout.batch_size prompts; choose a smaller number, or null",
        contradicts=True,
    ),
    Rule(
        ("rollout.gpu_memory_utilization", "rollout.sleep", "rollout.engine_args"),
        _both(_equals("rollout.engine", "vllm"), lambda c: _get(c, "rollout.server")),
        "it is for an engine in this process; beside rollout.server give it to `vllm serve`",
    ),
    Rule(
        ("rollout.timeout",),
        _both(_equals("rollout.engine", "vllm"), _without("rollout.server")),
        "only a server is waited for; set rollout.server, or leave it out",
    ),
    # ---- where it runs, what is logged
    Rule(
        ("trainer.strategy.offload_parameters",),
        lambda c: _deepspeed(c) and _get(c, "trainer.strategy.stage") != 3,
        "only ZeRO-3 has parameters to offload; choose trainer=deepspeed_zero3, or leave it out",
    ),
    Rule(
        ("trainer.strategy.offload_params_device",),
        _without("trainer.strategy.offload_parameters"),
        "no parameters are offloaded; set trainer.strategy.offload_parameters=true, or leave it out",
    ),
    Rule(("logger.save_dir",), uses_mlflow, "logger.tracking_uri says where runs are kept; leave it out"),
    Rule(
        ("logger.run_name", "logger.artifact_location"),
        _both(uses_mlflow, lambda c: _get(c, "logger.run_id")),
        "the run of logger.run_id has one already; leave it out",
    ),
)


def _kind(*names: str) -> Callable[[Config, Config], bool]:
    return lambda section, config: str(section.get("_target_", "")).rpartition(".")[2] in names


def _saves(condition: Callable[[Config, Config], Any]) -> Callable[[Config, Config], Any]:
    """A condition on callbacks like Lightning's ModelCheckpoint."""
    return lambda section, config: (
        str(section.get("_target_", "")).endswith(("ModelCheckpoint", "ResumableCheckpoint"))
        and condition(section, config)
    )


_TRIGGERS = ("every_n_epochs", "every_n_train_steps", "train_time_interval")

CALLBACK_RULES: tuple[Rule, ...] = (
    Rule(
        ("callbacks.*.monitor",),
        lambda section, c: str(section.get("monitor")).startswith("val/") and not _validates(c),
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
        _saves(lambda section, c: not section.get("monitor")),
        "nothing is monitored; set monitor, or leave it out",
    ),
    Rule(
        ("callbacks.*.save_top_k",),
        _saves(lambda section, c: not section.get("monitor") and section.get("save_top_k", 1) not in (-1, 0, 1)),
        "nothing is monitored, so there are no best ones; set monitor, or choose -1 (all) or 0 (last.ckpt alone)",
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
        "allowed: a section, {_target_: datetime.timedelta, minutes: 30}",
        contradicts=True,
    ),
    Rule(
        ("callbacks.*.save_on_exception",),
        _saves(lambda section, c: True),
        "an exception comes within a step, from which no run resumes exactly; leave it out",
    ),
    Rule(
        ("callbacks.*._target_",),
        _kind("OnExceptionCheckpoint"),
        "it saves within a step, from which no run resumes exactly, and makes Lightning resume unasked; the checkpoint "
        "before is kept by callbacks.checkpoint",
        contradicts=True,
    ),
    Rule(
        ("callbacks.*._target_",),
        lambda section, c: _kind("SampleTable")(section, c) and _ours(c) and _reads_rows(c),
        "{algorithm} samples no responses; set this callback to null",
        contradicts=True,
    ),
    Rule(
        ("callbacks.*.kl_factor", "callbacks.*.kl_target", "callbacks.*.entropy_factor"),
        lambda section, c: _kind("Guardrails")(section, c) and _ours(c) and _reads_rows(c),
        "{algorithm} has no KL and entropy of sampled responses; leave it out",
    ),
    Rule(
        ("callbacks.*.dirpath",),
        lambda section, c: _kind("StopOnSigterm")(section, c) and not declaration(c).saves_mid_epoch,
        "{algorithm} saves nothing within an iteration; leave it out",
    ),
)


def check_effects(config: Config) -> None:
    """Raise UserError for the first setting that has no effect beside the others.

    Args:
        config: a training config that follows the schema.
    """
    _check_targets(config)
    for key, value, rule in _findings(config):
        why = rule.why.replace("{algorithm}", declaration(config).name)
        raise UserError(f"{key}: found {_shown(value)}; {why}")
    callbacks = config.get("callbacks") or {}
    saves = any(str((section or {}).get("_target_", "")).endswith("Checkpoint") for section in callbacks.values())
    if _get(config, "trainer.enable_checkpointing") is False and saves:
        raise UserError(
            "trainer.enable_checkpointing: found false beside callbacks.checkpoint; set the callback to null"
        )
    if _get(config, "trainer.enable_progress_bar") is False and callbacks.get("progress"):
        raise UserError("trainer.enable_progress_bar: found false beside callbacks.progress; set the callback to null")
    if _get(config, "trainer.enable_checkpointing") is True and not saves:
        raise UserError("trainer.enable_checkpointing: found true, but no callback saves; choose callbacks=default")


def check_samples(settings: Config, prefix: str = "") -> None:
    """Raise UserError where an evaluation would draw the most likely answer several times."""
    samples = settings.get("samples_per_prompt", 1)
    if settings.get("temperature") == 0 and samples > 1:
        raise UserError(
            f"{prefix}samples_per_prompt: found {samples}; with {prefix}temperature=0 all answers to a prompt are the "
            "same; set it to 1, or raise the temperature"
        )


def _findings(config: Config) -> Iterator[tuple[str, Any, Rule]]:
    """Every key that a rule is about and that is set."""
    for rule in RULES:
        for key in rule.keys:
            if _is_set(key, value := _get(config, key), rule.contradicts) and rule.when(config):
                yield key, value, rule
    for name, section in (config.get("callbacks") or {}).items():
        for rule in CALLBACK_RULES if isinstance(section, Mapping) else ():
            for key in rule.keys:
                value = section.get(key.rpartition(".")[2])
                if _is_set(key, value, rule.contradicts) and rule.when(section, config):
                    yield key.replace("*", str(name)), value, rule


def _is_set(key: str, value: Any, contradicts: bool) -> bool:
    if value is None or (key, value) == ("trainer.limit_val_batches", 0):  # which says that nothing is validated
        return False
    if contradicts:
        return True
    given = shipped_values().get(key)
    return value not in given if given else bool(value)


@functools.cache
def shipped_values() -> dict[str, list[Any]]:
    """Dotted key -> the values that the files of `conf/` give it; of callbacks, `callbacks.*.<key>`."""
    values: dict[str, list[Any]] = {}
    for file in sorted(conf_dir().rglob("*.yaml")):
        text = file.read_text(encoding="utf-8")
        package = ".".join(file.parent.relative_to(conf_dir()).parts)
        for key, value in _leaves(yaml.load(text, _Loader), "" if "@package" in text else package):
            values.setdefault(_general(key), []).append(value)
    return values


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Reads `1e-5` as a number, as OmegaConf does; its own loader takes half a second for all files."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), [*"-+0123456789"]
)


def _leaves(content: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(content, Mapping) and content:
        for name, inner in content.items():
            yield from _leaves(inner, f"{prefix}.{name}".lstrip("."))
    else:
        yield prefix, content


def _general(key: str) -> str:
    """Without the place of a stage's overrides, or the name of a callback."""
    parts = key.split(".")
    if parts[0] == "stages" and "overrides" in parts:
        parts = parts[parts.index("overrides") + 1 :]
    if parts[0] == "callbacks" and len(parts) > 2:
        parts[1] = "*"
    return ".".join(parts)


_SECTIONS = ("model.adapter", "model.quantization", "scheduler", "logger", "prepare", "rollout", "reward", "optimizer")


def _check_targets(config: Config) -> None:
    """A section without its class is never built: it was set where the option `none` is chosen."""
    callbacks = tuple(f"callbacks.{name}" for name in config.get("callbacks") or {})
    for key in (*_SECTIONS, *callbacks):
        section = _get(config, key)
        if isinstance(section, Mapping) and section and not section.get("_target_"):
            names = ", ".join(f"{key}.{name}" for name in section)
            group = key.replace(".", "/") if not key.startswith("callbacks.") else "callbacks"
            raise UserError(f"{names}: nothing reads it, because {key} has no _target_; choose {group}=<option> first")


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return "a section"
    return str(value).lower() if isinstance(value, bool) else str(value)
