"""What the schema of single keys cannot see: sections that do not fit together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rlhf_lightning.addresses import check_address
from rlhf_lightning.config.arithmetic import check_arithmetic
from rlhf_lightning.config.check_types import check_types
from rlhf_lightning.config.checkpoint_names import check_checkpoint_names
from rlhf_lightning.config.combinations import check_groups, check_schedule, check_validation_interval
from rlhf_lightning.config.kernel_choice import check_kernels
from rlhf_lightning.config.monitors import check_monitors
from rlhf_lightning.config.source_lookup import (
    check_reward_calls,
    held_out_scorers,
    why_missing,
)
from rlhf_lightning.errors import UserError
from rlhf_lightning.experience.kl_control import KLPenalty
from rlhf_lightning.judging.settings import check_judge
from rlhf_lightning.setting_rules import (
    check_cost,
    check_held_out,
    check_importance,
    check_lengths,
    check_pretraining,
    check_reward,
    check_smoothing,
    engine_logprobs_differ,
)
from rlhf_lightning.source.constructors import setting
from rlhf_lightning.source.declarations import Declaration, data_kind, declaration
from rlhf_lightning.tracking.store import uses_mlflow

_ROWS = {
    "sft": "texts and completions",
    "preference": "preferences",
    "unpaired": "labelled answers",
    "prompts": "prompts",
    "steps": "labelled steps",
    "rewarded": "rewarded answers",
    "safety": "preferences with safety labels",
}


def check_data_kind(config: Mapping[str, Any]) -> None:
    """Raise UserError if the algorithm needs another kind of data. Runs before the schema, which would name details."""
    target, data = target_of(config, "algorithm"), target_of(config, "data")
    algorithm, found = declaration(config), data_kind(data)
    if algorithm.data is None:
        given = [key for key in ("rollout", "reward") if config.get(key)]
        if given and why_missing("algorithm._target_", target) is None:
            raise UserError(
                f"algorithm._target_: {target} does not declare `data`, so nothing reads {' and '.join(given)}; give "
                f'the class `data = "prompts"`, or set {" and ".join(given)} to null'
            )
    elif found not in (None, algorithm.data):
        raise UserError(
            f"data: {algorithm.name} learns from {_ROWS[algorithm.data]}, and {data.rpartition('.')[2]} gives "
            f"{_ROWS[str(found)]}; choose data={algorithm.data}"
        )


def target_of(config: Mapping[str, Any], section: str) -> str:
    found = config.get(section)
    return str(found.get("_target_", "")) if isinstance(found, Mapping) else ""


def check_sections(config: Mapping[str, Any]) -> None:
    """Raise UserError if two sections of a valid training config contradict each other."""
    algorithm = declaration(config)
    if algorithm.on_policy:
        if not config.get("rollout"):
            raise UserError(f"rollout: {algorithm.name} needs it; choose rollout=native")
        if not config.get("reward"):
            raise UserError(
                f"reward: {algorithm.name} needs it; choose reward=default and set reward.function or reward.model"
            )
        if "cost" in algorithm.roles and not config.get("cost"):
            raise UserError(f"cost: {algorithm.name} needs it; choose cost=default and set cost.function or cost.model")
        _check_sampling(config["algorithm"])
        _check_shaping(config)
        check_groups(config)
        if samples_with_vllm(config):
            if "vllm" not in algorithm.engines:
                raise UserError(
                    f"rollout.engine: found vllm, which cannot sample as {algorithm.name} does; choose rollout=native"
                )
            _check_vllm(config)
        _check_strategy(config["trainer"].get("strategy"))
    _check_model(algorithm, target_of(config, "model").removeprefix("rlhf_lightning.models."))
    check_schedule(config)
    check_validation_interval(config["trainer"])
    check_types(config)
    check_kernels(config)
    if config["model"].get("quantization") and not config["model"].get("adapter"):
        raise UserError("model.quantization: 4-bit weights cannot be trained themselves; choose model/adapter=lora")
    if str(target_of(config, "reward")).endswith(".make_reward"):
        check_reward(config["reward"])
        check_reward_calls(config["reward"], "reward.")
    if target_of(config, "cost").endswith(".make_cost"):
        check_cost(config["cost"])
    for key, part in held_out_scorers(config):
        check_reward(part, f"{key}.")
        check_reward_calls(part, f"{key}.")
    for key, judge in judges(config):
        check_judge(judge, f"{key}.")
    if algorithm.ours:
        smoothing = setting(config["algorithm"], "label_smoothing", 0)
        check_smoothing(str(setting(config["algorithm"], "loss_type")), smoothing)
    if target_of(config, "data").startswith("rlhf_lightning."):
        check_held_out(config["data"].get("val"), config["data"].get("val_fraction", 0))
    if config.get("register"):
        _check_register(config)
    check_arithmetic(config)
    check_monitors(config)
    check_checkpoint_names(config)


def judges(config: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield key and settings of each judge that the reward or a held-out scorer uses."""
    parts = dict(held_out_scorers(config))
    if target_of(config, "reward").endswith(".make_reward"):
        components = config["reward"].get("components") or {}
        parts |= {
            "reward": config["reward"],
            **{f"reward.components.{name}": each for name, each in components.items()},
        }
    yield from ((f"{key}.judge", part["judge"]) for key, part in parts.items() if part.get("judge"))


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = config.get(name)
    return found if isinstance(found, Mapping) else {}


def _check_model(algorithm: Declaration, loader: str) -> None:
    """Raise UserError for a policy where a reward model is trained, and vice versa."""
    scorer = "process_reward_model" if algorithm.data == "steps" else "reward_model"
    others = {"load_causal_lm", "load_reward_model", "load_process_reward_model"} - {f"load_{scorer}"}
    if algorithm.scores and loader in others:
        head = "a head of two classes" if algorithm.data == "steps" else "a score head"
        raise UserError(f"model._target_: a {scorer.replace('_', ' ')} has {head}; choose model={scorer}")
    if not algorithm.scores and loader in ("load_reward_model", "load_process_reward_model"):
        raise UserError(
            f"model._target_: found {loader}, but {algorithm.name} trains a policy; choose model=causal_lm (a "
            'class that trains a reward model declares `roles = ("reward",)`)'
        )


def _check_register(config: Mapping[str, Any]) -> None:
    if not uses_mlflow(config):
        raise UserError("register: MLflow keeps the registered models; choose logger=mlflow")
    if any(mark in config["register"] for mark in "/:"):
        raise UserError(f'register: found "{config["register"]}"; must be a name without / or :')


def _check_sampling(algorithm: Mapping[str, Any]) -> None:
    kl, ptx = _section(algorithm, "kl"), _section(algorithm, "ptx")
    if kl.get("_target_") == "rlhf_lightning.algorithms.KLPenalty":
        KLPenalty(**{name: value for name, value in kl.items() if not name.startswith("_")})
    check_importance(algorithm.get("old_logprobs", "trainer"), algorithm.get("importance_cap"))
    if str(ptx.get("_target_", "")).startswith("rlhf_lightning."):
        check_pretraining(ptx.get("coef", 0), ptx.get("data"))


def _check_shaping(config: Mapping[str, Any]) -> None:
    shaping = _section(config["algorithm"], "shaping")
    if shaping.get("_target_") == "rlhf_lightning.algorithms.RewardShaping":
        check_lengths(shaping, config["rollout"].get("max_new_tokens"))


def samples_with_vllm(config: Mapping[str, Any]) -> bool:
    """Return whether responses come from vLLM."""
    return (config.get("rollout") or {}).get("engine") == "vllm"


def _check_vllm(config: Mapping[str, Any]) -> None:
    if server := config["rollout"].get("server"):
        check_address("rollout.server", server, credentials=True)
    if config["model"].get("quantization"):
        raise UserError(
            "rollout.engine: vLLM would sample from whole weights while the trainer computes with 4-bit ones; choose "
            "rollout=native, or model/quantization=none"
        )
    if (config["model"].get("adapter") or {}).get("use_dora"):
        raise UserError("model.adapter.use_dora: vLLM does not support DoRA; choose rollout=native, or set it to false")
    if config["algorithm"].get("old_logprobs") == "engine":
        raise engine_logprobs_differ("vLLM")


def _check_strategy(strategy: Any) -> None:
    sharded = strategy.get("stage") == 3 if isinstance(strategy, Mapping) else "deepspeed_stage_3" in str(strategy)
    if sharded:
        raise UserError(
            "trainer.strategy: under ZeRO-3 every generated token gathers the weights, and a process that has finished "
            "its responses would leave the others waiting; choose trainer=fsdp2 or trainer=deepspeed_zero2"
        )
