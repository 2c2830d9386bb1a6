"""What a config reads and needs: classes, functions, models, files, packages. A missing one is an error."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from rlhf_lightning.config.checks import judges, samples_with_vllm, target_of
from rlhf_lightning.config.source_lookup import (
    check_names,
    held_out_scorers,
    reward_models,
)
from rlhf_lightning.config.spelling import keys_under
from rlhf_lightning.errors import VLLM_NOT_INSTALLED, UserError, blaming
from rlhf_lightning.hashes import ILQL_HEADS, check_model_files
from rlhf_lightning.runs.lineage import check_history
from rlhf_lightning.setting_rules import (
    check_one_kind,
    check_teacher,
    unsigned_cost,
)
from rlhf_lightning.source.declarations import declaration

_DATA_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".gz", ".parquet")


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
    writers = {"algorithm.teacher", *(f"{key}.model" for key, _ in judges(config))}
    for key, value, is_model in _inputs(config):
        if will_be_made(config, value, made):
            continue
        with blaming(f"{key}: {value} cannot be read"):
            Path(value).expanduser().exists()  # a name may be too long for the file system
        if is_model:
            _check_not_replaced(config, key, value)
        first = f"; first run: {commands[value]}" if value in commands else ""
        if is_model:
            check_model(key, value, first)
            with keys_under(f"{key}: "):
                check_history(value)
            policy = target_of(config, "model") == "rlhf_lightning.models.load_causal_lm"
            if key in writers or (policy and key == "model.path"):
                refuse_reward_model(key, value)
            check_direction(key, value, config)
        elif missing_locally(value):
            raise UserError(f"{key}: {value} does not exist{first}")
        else:
            check_no_split_of_a_file(key, value)
    _check_members(config)


def _check_members(config: Mapping[str, Any]) -> None:
    """Raise UserError for process reward models and others in one ensemble, as far as their folders are here."""
    reward = config.get("reward") or {}
    parts = {"": reward, **{f".components.{name}": part for name, part in (reward.get("components") or {}).items()}}
    for name, part in parts.items():
        local = [path for path in part.get("models") or () if is_reward_model(Path(path))]
        separator = {"config.json": '"step_separator"'}
        check_one_kind({path: declares(Path(path), separator) for path in local}, f"reward{name}.models")


def _check_not_replaced(config: Mapping[str, Any], key: str, value: str) -> None:
    """Raise UserError if a run would write its model over one that it reads, or over the base of an adapter."""
    own = config.get("run_dir")
    if own is None or config.get("ckpt"):
        return
    taken = {os.path.realpath(own), os.path.realpath(Path(own) / "model")}
    for path in (Path(value), *_adapter_bases(key, value)):
        if os.path.realpath(path.expanduser()) in taken:
            raise UserError(f"run_dir: found {own}, where the run's model would replace {key}; choose another folder")


def _check_vllm_is_installed(config: Mapping[str, Any]) -> None:
    if samples_with_vllm(config) and not config["rollout"].get("server") and not importlib.util.find_spec("vllm"):
        raise UserError(VLLM_NOT_INSTALLED)


def will_be_made(config: Mapping[str, Any], path: str, made: Collection[str]) -> bool:
    """Return whether a path is in one of these folders, or in the one that `prepare` fills."""
    prepared = (config.get("prepare") or {}).get("folder")
    folders = [Path(folder) for folder in (*made, *([prepared] if prepared else []))]
    return any(folder == Path(path) or folder in Path(path).parents for folder in folders)


def check_model(key: str, value: str, advice: str = "") -> None:
    """Raise UserError if a path of a model does not exist, is a file, or contains no model."""
    if missing_locally(value):
        raise UserError(f"{key}: {value} does not exist{advice}")
    if Path(value).is_file():
        raise UserError(f"{key}: found {value}, a file; give the folder of a model, or a hub name{advice}")
    if Path(value).is_dir() and not _holds_model(Path(value)):
        raise UserError(f"{key}: no model in {value} (no config.json there or in its model/){advice}")
    check_hashes(key, value)


def check_hashes(key: str, value: str) -> None:
    """Raise UserError if a model's files, or those of its adapter's base, have changed since they were written."""
    folder = _model_folder(value)
    check_model_files(folder, key=key)
    for base in _adapter_bases(key, value):
        check_model_files(base, key=key)


def _model_folder(value: str) -> Path:
    return Path(value) / "model" if _holds_itself(Path(value) / "model") else Path(value)


def _adapter_bases(key: str, value: str) -> list[Path]:
    """Return the base of an adapter, if the folder holds one."""
    file = _model_folder(value) / "adapter_config.json"
    if not file.is_file():
        return []
    with blaming(f"{key}: {file} cannot be read"):
        base = json.loads(file.read_text(encoding="utf-8"))["base_model_name_or_path"]
    return [Path(base)] if isinstance(base, str) and base else []


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
    candidates: list[tuple[str, Any, bool]] = [
        ("model.path", config["model"].get("path"), True),
        ("algorithm.teacher", config["algorithm"].get("teacher"), True),
        *((key, path, True) for key, path in reward_models(config)),
        ("cost.model", (config.get("cost") or {}).get("model"), True),
        ("data.train", config["data"].get("train"), False),
        ("data.val", config["data"].get("val"), False),
    ]
    candidates += [(f"{key}.model", None if j.get("url") else j.get("model"), True) for key, j in judges(config)]
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


def check_ilql_beta(config: Mapping[str, Any], models: Mapping[str, str]) -> None:
    """Raise UserError for a strength of ILQL's values that none of the models has."""
    folders = [Path(path) / part for path in models.values() for part in ("", "model")]
    if config.get("ilql_beta") is not None and not any((folder / ILQL_HEADS).is_file() for folder in folders):
        raise UserError(
            f"ilql_beta: found {config['ilql_beta']:g}, but no model here has ILQL's heads ({ILQL_HEADS}); leave it out"
        )
