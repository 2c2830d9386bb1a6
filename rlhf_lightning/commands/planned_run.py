"""Reading from a training config what the memory planner needs to know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from rlhf_lightning.commands.build import build
from rlhf_lightning.config.arithmetic import ppo_arithmetic, processes, samples_per_prompt
from rlhf_lightning.config.inputs import missing_locally
from rlhf_lightning.config.source_lookup import reward_models
from rlhf_lightning.errors import UserError
from rlhf_lightning.hashes import check_model_files
from rlhf_lightning.kernels.registry import read_asked
from rlhf_lightning.models import load_config, run_model_folder, step_separator
from rlhf_lightning.models.adapters import is_adapter_folder
from rlhf_lightning.models.foreign_folders import check_foreign_folder
from rlhf_lightning.planning import Devices, Loss, Network, Optimizer, RewardModel, Rollout, Rows, Run
from rlhf_lightning.source.constructors import setting
from rlhf_lightning.source.declarations import declaration, declared_data

_LONG = 1024  # tokens per row if a config sets no limit
_HALF = {"bf16-true": torch.bfloat16, "16-true": torch.float16}
_MIXED = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
_STRATEGIES = {  # prefix of a strategy's name -> what it shards
    "ddp": "ddp",
    "fsdp": "fsdp2",
    "fullysharded": "fsdp2",
    "modelparallel": "fsdp2",
    "deepspeed_stage_1": "zero1",
    "deepspeed_stage_3": "zero3",
    "deepspeed": "zero2",
}


def planned_run(config: Mapping[str, Any], starts_from_adapter: bool = False, device_bytes: int = 0) -> Run:
    """Return a checked training config as the planner's run. Only the configurations of its models are read.

    Args:
        config: a training config.
        starts_from_adapter: an earlier stage that has not run yet will leave an adapter as the model.
        device_bytes: size of the device, of which vLLM takes a share.

    Raises:
        UserError: a model's configuration cannot be read.
    """
    data = config["data"]
    algorithm, pairs = declaration(config), declared_data(config) in ("preference", "safety")
    policy = _policy(config, "SEQ_CLS" if algorithm.scores else "CAUSAL_LM")
    length = _length(data.get("max_length"), policy)
    devices = _devices(config)
    run = Run(
        name=str(config.get("name")),
        policy=policy,
        rows=Rows(data.get("batch_size", 1) * (2 if pairs else 1), length, length - 1),
        roles=algorithm.roles,
        pairs=pairs,
        autocast=_MIXED.get(config["trainer"].get("precision", "32-true")),
        accumulate=config["trainer"].get("accumulate_grad_batches", 1),
        optimizer=_optimizer(config["optimizer"]),
        loss=Loss(q_heads="q_heads" in algorithm.roles, on_cpu=devices.cpu),
        devices=devices,
        teacher=_teacher(config, policy) if "teacher" in algorithm.roles else None,
        averaged=_averages(config),
        starts_from_adapter=starts_from_adapter or _is_adapter(config["model"]["path"]),
    )
    if algorithm.on_policy:
        return _with_rollout(run, config, device_bytes)
    before = setting(config["algorithm"], "precompute_reference")
    return run if before is None else replace(run, keeps_reference=not before)


def _policy(config: Mapping[str, Any], task: Any) -> Network:
    model, architecture = config["model"], read_architecture(config["model"]["path"], config["model"].get("revision"))
    return Network(
        source=str(model["path"]),
        architecture=architecture,
        task=task,
        dtype=_dtype(model.get("dtype", "float32"), architecture),
        attn_implementation=model.get("attn_implementation"),
        lora=build(model.get("adapter"), "model.adapter"),
        nf4=build(model.get("quantization"), "model.quantization"),
        activation_checkpointing=model.get("activation_checkpointing", False),
        cast_to=_HALF.get(config["trainer"].get("precision", "32-true")),
        kernels=read_asked(model.get("kernels", "auto")),
    )


def _averages(config: Mapping[str, Any]) -> bool:
    """Return whether a callback keeps an average of the weights."""
    sections = (config.get("callbacks") or {}).values()
    return any(str((each or {}).get("_target_", "")).endswith(".TrainableAverage") for each in sections)


def _teacher(config: Mapping[str, Any], policy: Network) -> Network:
    """Return the teacher; one that does not exist yet is assumed to be like the policy."""
    path, dtype = config["algorithm"].get("teacher"), str(setting(config["algorithm"], "teacher_dtype"))
    if path is None or missing_locally(path):
        return Network(policy.source, policy.architecture, "CAUSAL_LM", _dtype(dtype, policy.architecture))
    architecture = read_architecture(path)
    return Network(path, architecture, "CAUSAL_LM", _dtype(dtype, architecture))


def read_architecture(path: str, revision: str | None = None) -> Any:
    """Return the configuration of a model: a `config.json`, a folder with one, a run folder or a hub name.

    Raises:
        UserError: there is none, or transformers does not know it.
    """
    try:
        if Path(path).is_file():
            check_model_files(Path(path).parent)
            check_foreign_folder(path, revision, trust_remote_code=False)
            return AutoConfig.from_pretrained(path, trust_remote_code=False)
        return load_config(path, revision)
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"model.path: cannot read the configuration of {path}: {error}") from error


def _dtype(name: str, architecture: Any) -> torch.dtype:
    if name == "auto":
        return architecture.dtype or torch.float32
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _length(limit: int | None, policy: Network) -> int:
    return limit or min(_LONG, getattr(policy.text, "max_position_embeddings", _LONG))


def _is_adapter(path: str) -> bool:
    return Path(path).is_dir() and is_adapter_folder(run_model_folder(path))


def _optimizer(section: Mapping[str, Any]) -> Optimizer:
    if str(section["_target_"]).endswith("SGD"):
        return Optimizer(1 if section.get("momentum") else 0)
    return Optimizer(3 if section.get("amsgrad") else 2)


def _devices(config: Mapping[str, Any]) -> Devices:
    trainer = config["trainer"]
    world, _ = processes(config)
    strategy: Any = trainer.get("strategy", "auto")
    views = isinstance(strategy, Mapping) and strategy.get("gradient_as_bucket_view", False)
    if isinstance(strategy, Mapping):
        name = str(strategy["_target_"]).rpartition(".")[2].lower()
        strategy = f"deepspeed_stage_{strategy.get('stage', 2)}" if name == "deepspeedstrategy" else name
    found: Any = next((kind for name, kind in _STRATEGIES.items() if strategy.startswith(name)), "ddp")
    return Devices(
        processes=world,
        sharding=found if world > 1 else "none",
        gradient_copies=2 if world > 1 and found == "ddp" and not views else 1,
        cpu=trainer.get("accelerator") == "cpu",
    )


def _with_rollout(run: Run, config: Mapping[str, Any], device_bytes: int) -> Run:
    settings, algorithm, ptx = config["rollout"], config["algorithm"], config["algorithm"].get("ptx") or {}
    prompt = _length(config["data"].get("max_prompt_length"), run.policy)
    response = settings.get("max_new_tokens", 64)
    micro_batch = ppo_arithmetic(config)["responses per micro-batch"]
    entropy, separate = setting(algorithm, "entropy_coef", 0) != 0, setting(algorithm, "layout") == "separate"
    extra = Rows(ptx["batch_size"], ptx["max_length"], ptx["max_length"] - 1) if ptx.get("coef") else None
    return replace(
        run,
        rows=Rows(micro_batch, prompt + response, response),
        loss=Loss(settings.get("temperature", 1.0), entropy, value="critic" in run.roles, on_cpu=run.devices.cpu),
        separate=separate,
        extra=extra,
        rollout=_sampled(settings, samples_per_prompt(config), prompt, response, device_bytes),
        reward_model=_scorer(config.get("reward") or {}, run.policy, separate),
        cost_model=_scorer(config.get("cost") or {}, run.policy, separate),
    )


def _sampled(settings: Mapping[str, Any], samples: int, prompt: int, response: int, device_bytes: int) -> Rollout:
    prompts = settings.get("batch_size", 64)
    at_once = min(prompts, settings.get("generation_batch_size") or prompts)
    rollout = Rollout(prompts * samples, at_once * samples, prompt, response, samples)
    if settings.get("engine") != "vllm":
        return rollout
    if settings.get("server"):
        return replace(rollout, engine="server")
    share, sleeps = settings.get("gpu_memory_utilization", 0.4), settings.get("sleep", False)
    return replace(rollout, engine="vllm", share=share, device=device_bytes, sleeps=sleeps)


def _scorer(reward: Mapping[str, Any], policy: Network, separate: bool) -> RewardModel | None:
    """Return the scoring networks, the largest first; one that does not exist yet is assumed to be like the policy."""
    paths = [path for _, path in reward_models({"reward": reward})]
    if not paths:
        return None
    rows, shareable = reward.get("batch_size", 32), policy.lora is not None and not separate
    frozen = Network(
        policy.source, policy.architecture, "SEQ_CLS", _dtype(reward.get("dtype", "float32"), policy.architecture)
    )
    if not any(Path(path).exists() for path in paths):
        first = policy if shareable else frozen
        return RewardModel(first, rows, shareable, (first,) * (len(paths) - 1))
    if shareable and all(_is_adapter(path) and step_separator(path) is None for path in paths):
        return RewardModel(policy, rows, True, (policy,) * (len(paths) - 1))
    networks = [
        replace(frozen, source=path, architecture=read_architecture(path)) if Path(path).exists() else frozen
        for path in paths
    ]
    largest, *others = sorted(networks, key=lambda network: network.weights().total, reverse=True)
    return RewardModel(largest, rows, beside=tuple(others))
