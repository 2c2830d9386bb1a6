"""Problems that can be found once torch is imported, before anything is loaded or trained.

A run checks its own objects, a pipeline those of all its stages: a mistake in the last stage costs only seconds.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rlhf_lightning.commands.build import build, build_bare_trainer
from rlhf_lightning.config.inputs import missing_locally, model_inputs, will_be_made
from rlhf_lightning.config.source_lookup import reward_functions, sections
from rlhf_lightning.errors import UserError, blaming, named, named_as

_LOADERS: dict[str, Literal["CAUSAL_LM", "SEQ_CLS"]] = {
    "rlhf_lightning.models.load_causal_lm": "CAUSAL_LM",
    "rlhf_lightning.models.load_reward_model": "SEQ_CLS",
    "rlhf_lightning.models.load_process_reward_model": "SEQ_CLS",
}


def rehearse_objects(config: Mapping[str, Any]) -> None:
    """Import everything that a training config names, check that it accepts its settings, and try the devices.

    Raises:
        UserError: a name that cannot be imported or does not accept a setting; devices or a strategy that Lightning
            refuses.
    """
    _import_functions(config)
    rehearse_sections(config)
    build_bare_trainer(config)


def rehearse_sections(config: Mapping[str, Any]) -> None:
    """Import the class or function of every section, and check that it accepts its settings. Raises UserError."""
    for key, section in sections(config):
        _check_takes(key, section)


def _import_functions(config: Mapping[str, Any]) -> None:
    """Import every reward function that will be called. Raises UserError for one that cannot be called as a reward."""
    from rlhf_lightning.rewards import FunctionReward

    for key, function, arguments, arguments_key in reward_functions(config):
        with named_as(arguments_key):
            FunctionReward(function, key, arguments=arguments)


def _check_takes(key: str, section: Mapping[str, Any]) -> None:
    target = section["_target_"]
    with blaming(f"{key}._target_: cannot import {target}"):  # an import runs whatever the user's module contains
        made = _imported(target)
    if not callable(made):
        raise UserError(f"{key}._target_: {target} is a {type(made).__name__}, which cannot be called")
    settings = [name for name in section if not str(name).startswith("_")]
    try:
        parameters = inspect.signature(made).parameters
    except (TypeError, ValueError):  # implemented in C
        return
    kinds = {parameter.kind for parameter in parameters.values()}
    unknown = [name for name in settings if name not in parameters]
    if unknown and inspect.Parameter.VAR_KEYWORD not in kinds:
        raise UserError(f"{key}.{unknown[0]}: {target} takes no such argument; allowed: {', '.join(parameters)}")


def _imported(target: str) -> Any:
    """Return what a dotted path names, importing the longest part of it that is a module."""
    parts = target.split(".")
    made: Any = importlib.import_module(parts[0])
    for number, part in enumerate(parts[1:], 2):
        if not hasattr(made, part):
            importlib.import_module(".".join(parts[:number]))
        made = getattr(made, part)
    return made


@dataclass(frozen=True)
class Origin:
    """What is known of a model before it exists: the model that its run begins from, or the model itself.

    Args:
        path: an existing folder, or a name on the hub.
        tokenizer: its tokenizer; None for a hub name, which is not queried yet.
    """

    path: str
    tokenizer: Any


def rehearse_inputs(config: Mapping[str, Any], made: Mapping[str, Origin | None]) -> Origin | None:
    """Read the rows and the small model files that a later stage will read, and build its network in outline.

    Args:
        config: the stage's training config.
        made: folders that stages create, each with what its model begins from, as far as that is known.

    Returns:
        What the stage's model begins from.

    Raises:
        UserError: the first problem, under the key that names it.
    """
    origin: Origin | None = None
    for key, path in model_inputs(config):
        if _lies_in(path, made):
            found = made.get(path)
        else:
            revision = config["model"].get("revision") if key == "model.path" else None
            with named_as(key):
                found = Origin(path, _read_small_files(path, revision))
        origin = found if key == "model.path" else origin
    _rehearse_rows(config["data"], origin and origin.tokenizer)
    if origin is not None and origin.tokenizer is not None:
        _rehearse_network(config["model"], origin.path)
    return origin


def _rehearse_network(section: Mapping[str, Any], path: str) -> None:
    """Build one layer of the policy or reward model on the meta device, with its attention and its adapter."""
    import torch

    from rlhf_lightning.models.adapters import add_adapter
    from rlhf_lightning.models.loading import load_config, try_network
    from rlhf_lightning.planning.networks import Network

    target = str(section.get("_target_"))
    if target not in _LOADERS:
        return  # a user's own class
    network = Network(path, load_config(path), _LOADERS[target], torch.float32).shallow(1)
    outline = try_network(path, network.task, section.get("attn_implementation"), network.architecture)
    if adapter := build(section.get("adapter"), "model.adapter"):
        with torch.device("meta"), blaming("model.adapter: cannot be added to the model"):
            add_adapter(outline, adapter, network.task, None)


def rehearse_evaluation(prompts: str | None, made: Collection[str]) -> None:
    """Read the prompts of the evaluation after the stages. Raises UserError."""
    if prompts is not None and not _lies_in(prompts, made):
        section = {"_target_": "rlhf_lightning.data.PromptDataModule", "train": prompts}
        try:
            _rehearse_rows(section, None)
        except UserError as error:
            raise UserError(f"evaluation.prompts: {str(error).removeprefix('data.train: ')}") from error


def _lies_in(path: str, made: Collection[str]) -> bool:
    return will_be_made({}, path, made)


def _rehearse_rows(section: Mapping[str, Any], tokenizer: Any) -> None:
    from rlhf_lightning.data.datamodules import RowDataModule

    sources = {f"data.{name}": str(section[name]) for name in ("val", "train") if section.get(name) is not None}
    if not all(Path(source).expanduser().exists() for source in sources.values()):
        return  # a name on the hub: the stage itself downloads it
    datamodule = build(section, "data", tokenizer=tokenizer)
    if isinstance(datamodule, RowDataModule):
        try:
            datamodule.rehearse()
        except UserError as error:
            if str(error).startswith("data."):
                raise
            key = next((key for key, source in sources.items() if str(error).startswith(source)), "data.train")
            raise UserError(f"{key}: {error}") from error


def _read_small_files(path: str, revision: str | None) -> Any:
    """Return a local model's tokenizer after reading its config and checking its weight files; None for a hub name."""
    if missing_locally(path) or not Path(path).expanduser().exists():
        return None
    from rlhf_lightning.models.loaded_weights import check_whole
    from rlhf_lightning.models.loading import load_config, load_tokenizer, run_model_folder

    load_config(path, revision)
    with blaming(f"{named()}: the weights of {path} cannot be read"):
        check_whole(run_model_folder(path))
    return load_tokenizer(path, revision)
