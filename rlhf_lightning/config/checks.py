"""What the schema of single keys cannot see: sections that do not fit together, and missing inputs."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from rlhf_lightning.config.arithmetic import check_arithmetic
from rlhf_lightning.config.check_types import check_types
from rlhf_lightning.config.combinations import check_groups, check_schedule, check_validation_interval
from rlhf_lightning.config.kernel_choice import check_kernels
from rlhf_lightning.config.monitors import check_monitors
from rlhf_lightning.config.source_lookup import (
    check_names,
    check_reward_calls,
    held_out_scorers,
    reward_models,
    why_missing,
)
from rlhf_lightning.config.spelling import keys_under
from rlhf_lightning.errors import VLLM_NOT_INSTALLED, UserError, blaming
from rlhf_lightning.experience.kl_control import KLPenalty
from rlhf_lightning.hashes import ILQL_HEADS, check_model_files
from rlhf_lightning.judging.settings import check_judge
from rlhf_lightning.runs.lineage import check_history
from rlhf_lightning.setting_rules import (
    check_cost,
    check_held_out,
    check_importance,
    check_lengths,
    check_pretraining,
    check_reward,
    check_smoothing,
    check_teacher,
    engine_logprobs_differ,
    unsigned_cost,
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
_DATA_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".gz", ".parquet")


def check_data_kind(config: Mapping[str, Any]) -> None:
    """Raise UserError if the algorithm needs another kind of data. Runs before the schema, which would name details."""
    target, data = _target(config, "algorithm"), _target(config, "data")
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


def _target(config: Mapping[str, Any], section: str) -> str:
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
    _check_model(algorithm, _target(config, "model").removeprefix("rlhf_lightning.models."))
    check_schedule(config)
    check_validation_interval(config["trainer"])
    check_types(config)
    check_kernels(config)
    if config["model"].get("quantization") and not config["model"].get("adapter"):
        raise UserError("model.quantization: 4-bit weights cannot be trained themselves; choose model/adapter=lora")
    if str(_target(config, "reward")).endswith(".make_reward"):
        check_reward(config["reward"])
        check_reward_calls(config["reward"], "reward.")
        for key, judge in _judges(config["reward"]):
            check_judge(judge, f"{key}.")
    if _target(config, "cost").endswith(".make_cost"):
        check_cost(config["cost"])
    for key, part in held_out_scorers(config):
        check_reward(part, f"{key}.")
        check_reward_calls(part, f"{key}.")
    if algorithm.ours:
        smoothing = setting(config["algorithm"], "label_smoothing", 0)
        check_smoothing(str(setting(config["algorithm"], "loss_type")), smoothing)
    if _target(config, "data").startswith("rlhf_lightning."):
        check_held_out(config["data"].get("val"), config["data"].get("val_fraction", 0))
    if config.get("register"):
        _check_register(config)
    check_arithmetic(config)
    check_monitors(config)


def _judges(reward: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield key and settings of each judge that a reward uses."""
    parts = {"": reward, **{f".components.{name}": part for name, part in (reward.get("components") or {}).items()}}
    yield from ((f"reward{name}.judge", part["judge"]) for name, part in parts.items() if part.get("judge"))


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


def check_ilql_beta(config: Mapping[str, Any], models: Mapping[str, str]) -> None:
    """Raise UserError for a strength of ILQL's values that none of the models has."""
    folders = [Path(path) / part for path in models.values() for part in ("", "model")]
    if config.get("ilql_beta") is not None and not any((folder / ILQL_HEADS).is_file() for folder in folders):
        raise UserError(
            f"ilql_beta: found {config['ilql_beta']:g}, but no model here has ILQL's heads ({ILQL_HEADS}); leave it out"
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
    if config["model"].get("quantization"):
        raise UserError(
            "rollout.engine: vLLM would sample from whole weights while the trainer computes with 4-bit ones; choose "
            "rollout=native, or model/quantization=none"
        )
    if (config["model"].get("adapter") or {}).get("use_dora"):
        raise UserError("model.adapter.use_dora: vLLM does not support DoRA; choose rollout=native, or set it to false")
    if config["algorithm"].get("old_logprobs") == "engine":
        raise engine_logprobs_differ("vLLM")


def _check_vllm_is_installed(config: Mapping[str, Any]) -> None:
    if samples_with_vllm(config) and not config["rollout"].get("server") and not importlib.util.find_spec("vllm"):
        raise UserError(VLLM_NOT_INSTALLED)


def _check_strategy(strategy: Any) -> None:
    sharded = strategy.get("stage") == 3 if isinstance(strategy, Mapping) else "deepspeed_stage_3" in str(strategy)
    if sharded:
        raise UserError(
            "trainer.strategy: under ZeRO-3 every generated token gathers the weights, and a process that has finished "
            "its responses would leave the others waiting; choose trainer=fsdp2 or trainer=deepspeed_zero2"
        )


def check_inputs(config: Mapping[str, Any], made: Collection[str] = ()) -> None:
    """Raise UserError for the first class, function, model, reward model or data path that is missing, or missing vLLM.

    Args:
        config: a training config.
        made: folders that will exist by then, because an earlier stage or `prepare` creates them.
    """
    _check_vllm_is_installed(config)
    check_names(config)
    if "teacher" in declaration(config).roles:
        check_teacher(config["algorithm"].get("teacher"))
    commands = config.get("requires") or {}
    for key, value, is_model in _inputs(config):
        if will_be_made(config, value, made):
            continue
        with blaming(f"{key}: {value} cannot be read"):
            Path(value).expanduser().exists()  # a name may be too long for the file system
        first = f"; first run: {commands[value]}" if value in commands else ""
        if is_model:
            check_model(key, value, first)
            with keys_under(f"{key}: "):
                check_history(value)
            policy = _target(config, "model") == "rlhf_lightning.models.load_causal_lm"
            if key.endswith(("judge.model", "algorithm.teacher")) or (policy and key == "model.path"):
                refuse_reward_model(key, value)
            check_direction(key, value, config)
        elif missing_locally(value):
            raise UserError(f"{key}: {value} does not exist{first}")
        else:
            check_no_split_of_a_file(key, value)


def will_be_made(config: Mapping[str, Any], path: str, made: Collection[str]) -> bool:
    """Return whether a path is in one of these folders, or in the one that `prepare` fills."""
    prepared = (config.get("prepare") or {}).get("folder")
    folders = [Path(folder) for folder in (*made, *([prepared] if prepared else []))]
    return any(folder == Path(path) or folder in Path(path).parents for folder in folders)


def check_model(key: str, value: str, advice: str = "") -> None:
    """Raise UserError if a path of a model does not exist, or contains no model."""
    if missing_locally(value):
        raise UserError(f"{key}: {value} does not exist{advice}")
    if Path(value).is_dir() and not _holds_model(Path(value)):
        raise UserError(f"{key}: no model in {value} (no config.json there or in its model/){advice}")
    check_hashes(key, value)


def check_hashes(key: str, value: str) -> None:
    """Raise UserError if a model's files, or those of its adapter's base, have changed since they were written."""
    folder = Path(value) / "model" if _holds_itself(Path(value) / "model") else Path(value)
    check_model_files(folder, key=key)
    file = folder / "adapter_config.json"
    if file.is_file():
        with blaming(f"{key}: {file} cannot be read"):
            base = json.loads(file.read_text(encoding="utf-8"))["base_model_name_or_path"]
            if isinstance(base, str) and base:
                check_model_files(base, key=key)


def refuse_reward_model(key: str, value: str) -> None:
    """Raise UserError if a policy is needed but the folder holds a reward model, even with a tied output layer."""
    if is_reward_model(Path(value)):
        raise UserError(f"{key}: {value} is a reward model, which scores answers but writes none")


def is_reward_model(folder: Path) -> bool:
    """Return whether a run folder or a Hugging Face folder declares its model a classifier."""
    marks = {"config.json": "ForSequenceClassification", "adapter_config.json": '"SEQ_CLS"'}
    return declares(folder, marks)


def declares(folder: Path, marks: Mapping[str, str]) -> bool:
    """Return whether a file of a run folder or a Hugging Face folder contains its mark."""
    files = ((folder / part / name, mark) for part in ("model", ".") for name, mark in marks.items())
    return any(file.is_file() and mark in file.read_text(encoding="utf-8", errors="replace") for file, mark in files)


def check_direction(key: str, value: str, config: Mapping[str, Any]) -> None:
    """Raise UserError for a cost model that would be maximised, or a cost without sign terms."""
    signed = declares(Path(value), {"config.json": '"cost_model": true'})
    if signed and key.partition(".")[0] == "reward":
        raise UserError(
            f"{key}: {value} is a cost model, whose higher scores are worse, and a reward is maximised; give it as "
            "cost.model (algorithm=ppo_lagrangian)"
        )
    asked = key == "cost.model" and config["cost"].get("signed", True)
    if asked and Path(value).is_dir() and not signed:
        raise UserError(unsigned_cost("cost.", value))


def _inputs(config: Mapping[str, Any]) -> Iterator[tuple[str, str, bool]]:
    """Yield key, path and whether it is a model, for everything the run reads."""
    reward = config.get("reward") or {}
    candidates: list[tuple[str, Any, bool]] = [
        ("model.path", config["model"].get("path"), True),
        ("algorithm.teacher", config["algorithm"].get("teacher"), True),
        *((key, path, True) for key, path in reward_models(config)),
        ("cost.model", (config.get("cost") or {}).get("model"), True),
        ("data.train", config["data"].get("train"), False),
        ("data.val", config["data"].get("val"), False),
    ]
    candidates += [(f"{key}.model", None if j.get("url") else j.get("model"), True) for key, j in _judges(reward)]
    candidates += [(f"{key}.model", part.get("model"), True) for key, part in held_out_scorers(config)]
    yield from ((key, value, model) for key, value, model in candidates if isinstance(value, str) and value != "???")


def model_inputs(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield key and path of every model that a run reads."""
    return ((key, value) for key, value, is_model in _inputs(config) if is_model)


def missing_locally(value: str) -> bool:
    """Return whether `value` must be a path on this machine, and is missing. `gpt2` and `org/name` may be hub names.

    A split may follow: `org/name:test`, `my_folder:test`, `org/name:configuration:test`.
    """
    if Path(value).expanduser().exists():
        return False
    value = re.sub(r"(?<=/)([\w.-]+):[^:/]+(:[\w.-]+)$|:[\w.-]+$", r"\1", value)
    path = Path(value).expanduser()
    if path.exists():
        return False
    hub_name = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", value) and not value.startswith((".", "/", "~"))
    return not hub_name or path.suffix in _DATA_SUFFIXES or (len(path.parts) > 1 and Path(path.parts[0]).is_dir())


def check_no_split_of_a_file(key: str, value: str) -> None:
    """Raise UserError for `rows.jsonl:test`: only folders and hub names have splits."""
    file, _, split = value.rpartition(":")
    if file and not Path(value).expanduser().exists() and Path(file).expanduser().is_file():
        raise UserError(f"{key}: found {value}, but {file} is a file, which has no splits; give it without :{split}")


def _holds_model(folder: Path) -> bool:
    return _holds_itself(folder) or _holds_itself(folder / "model")


def _holds_itself(folder: Path) -> bool:
    return any((folder / file).is_file() for file in ("config.json", "adapter_config.json"))
