"""Building the objects of a run from its config. The only place that calls Hydra's `instantiate`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from rlhf_lightning.config.check_types import check_trainer
from rlhf_lightning.config.devices import why_torch_sees_none
from rlhf_lightning.errors import UserError, blaming, named_as, reason
from rlhf_lightning.runs.ranks import under_srun
from rlhf_lightning.runs.run import Run
from rlhf_lightning.source.declarations import declaration
from rlhf_lightning.tracking.run_tracking import join_run, logger_settings
from rlhf_lightning.tracking.store import uses_mlflow

if TYPE_CHECKING:
    from lightning import LightningDataModule, LightningModule, Trainer

    from rlhf_lightning.callbacks import SteadyMLFlowLogger


def build(section: Mapping[str, Any] | None, key: str, **arguments: Any) -> Any:
    """Call a section's `_target_` with its values (plain containers) and further arguments; return None for no section.

    Raises:
        UserError: the target cannot be imported, or does not accept these arguments.
    """
    if section is not None and not isinstance(section, Mapping):
        raise UserError(f"{key}: found {section}; must be a section with _target_, or null")
    if not section or "_target_" not in section:
        return None
    try:
        # As a partial first: Hydra would copy or convert some of the further arguments (dataclasses, lists).
        wants_partial = section.get("_partial_", False)
        call = instantiate(OmegaConf.create({**section, "_partial_": True}), _convert_="all")
    except InstantiationException as error:
        if error.__cause__ is not None and isinstance(error.__cause__, UserError):
            raise error.__cause__ from error
        if "locating target" in str(error) or "load" in str(error):
            why = f": {' '.join(str(error.__cause__).split())}" if error.__cause__ is not None else ""
            raise UserError(f"{key}._target_: cannot import {section['_target_']}{why}") from error
        cause = error.__cause__ if error.__cause__ is not None else error
        raise UserError(f"{key}: {section['_target_']} cannot be built: {reason(cause)}") from error
    return call if wants_partial and not arguments else call(**arguments)


def prepare(config: Mapping[str, Any]) -> None:
    """Call the function that makes the data of a run or a pipeline, if one is configured.

    Raises:
        UserError: it failed.
    """
    with blaming("prepare: the call failed"):
        build(config.get("prepare"), "prepare")


def build_parts(run: Run) -> tuple[Any, Any, Any, Any]:
    """Return the tokenizer, algorithm, data and Trainer of a run, after seeding with its seed."""
    import lightning
    import torch

    from rlhf_lightning.compat.lightning_names import leave_signals_alone
    from rlhf_lightning.models import load_tokenizer

    config = run.config
    torch.set_float32_matmul_precision(config.get("matmul_precision", "highest"))
    lightning.seed_everything(config["seed"], workers=True, verbose=False)
    tokenizer = load_tokenizer(config["model"]["path"], config["model"].get("revision"))
    module = build_module(config, tokenizer)
    module.accepts_other_rows = bool(config.get("resume_anyway"))  # type: ignore[assignment]
    datamodule = build_datamodule(config, tokenizer)
    trainer = build_trainer(run)
    leave_signals_alone(trainer)
    return tokenizer, module, datamodule, trainer


def build_module(config: Mapping[str, Any], tokenizer: Any) -> LightningModule:
    """Return the algorithm with model, optimiser and scheduler; if it samples, also with reward and rollout."""
    from lightning import LightningModule

    path = config["model"].get("path")
    with blaming(f"model.path: {path} cannot be loaded"):
        model = build(config["model"], "model")
    parts = {"model": model, "tokenizer": tokenizer}
    algorithm = declaration(config)
    scorers = [
        name for name in ("reward", "cost") if algorithm.on_policy and (name == "reward" or name in algorithm.roles)
    ]
    for name in ("optimizer", "scheduler", *(["rollout"] if algorithm.on_policy else [])):
        parts[name] = _built(config.get(name), name)
    for name in scorers:
        from rlhf_lightning.rewards.protocol import as_reward

        parts["seed"] = config["seed"]
        with named_as(f"{name}.model"):
            parts[name] = _built(config.get(name), name)
        as_reward(parts[name]).use_kernels(config["model"].get("kernels", "auto"))
    module: LightningModule = _of_kind(LightningModule, _built(config["algorithm"], "algorithm", **parts), "algorithm")
    return module


def _built(section: Mapping[str, Any] | None, key: str, **arguments: Any) -> Any:
    """Do the same as `build`, but blame whatever the section's class raises on the section."""
    target = section.get("_target_") if isinstance(section, Mapping) else section
    outside = not str(target).startswith("rlhf_lightning.") and not key.startswith("callbacks.")
    name = f"{key}._target_" if outside else key
    with blaming(f"{name}: {target} cannot be built with these settings"):
        return build(section, key, **arguments)


def _of_kind(kind: type[Any], made: Any, key: str) -> Any:
    """Return what was made if it is of the expected kind; else refuse the section's class."""
    if not isinstance(made, kind):
        raise UserError(f"{key}._target_: makes a {type(made).__name__}; must make a {kind.__name__}")
    return made


def build_datamodule(config: Mapping[str, Any], tokenizer: Any) -> LightningDataModule:
    """Return the data module for the model's tokenizer."""
    from lightning import LightningDataModule

    made = _built(config["data"], "data", tokenizer=tokenizer, seed=config["seed"])
    datamodule: LightningDataModule = _of_kind(LightningDataModule, made, "data")
    return datamodule


def build_trainer(run: Run) -> Trainer:
    """Return Lightning's Trainer with the run's folder, logger and callbacks."""
    from lightning.pytorch.callbacks import Callback, Checkpoint

    config = run.config
    callbacks = []
    for name, section in (config.get("callbacks") or {}).items():
        extra: dict[str, Any] = {}
        target = section.get("_target_", "") if isinstance(section, Mapping) else ""
        if str(target).endswith("Checkpoint") and not section.get("dirpath"):
            extra["dirpath"] = run.folder / "checkpoints"
        if section not in (None, {}):
            callbacks.append(_of_kind(Callback, _built(section, f"callbacks.{name}", **extra), f"callbacks.{name}"))
    saves = any(isinstance(callback, Checkpoint) for callback in callbacks)
    logger = _build_logger(run)
    with _devices_that_are_there(config["trainer"]):
        trainer: Trainer = build(
            # Without a callback that saves, Lightning would add its own, which saves at any point.
            {"enable_checkpointing": saves, **config["trainer"]},
            "trainer",
            logger=logger or False,
            callbacks=callbacks,
            plugins=_plugins(config["trainer"].get("plugins"), run.folder),
            default_root_dir=run.folder,
            use_distributed_sampler=False,  # the loaders shard themselves
            enable_model_summary=False,
        )
    if uses_mlflow(config):
        logger.follow(trainer)
    check_trainer(config, trainer)
    return trainer


def build_bare_trainer(config: Mapping[str, Any]) -> Trainer:
    """Return a Trainer without callbacks and logger, to check that its devices, strategy and precision exist."""
    with _devices_that_are_there(config["trainer"]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the run's own Trainer issues them
        trainer: Trainer = build(
            {**config["trainer"], "enable_checkpointing": False, "enable_progress_bar": False},
            "trainer",
            logger=False,
            plugins=_plugins(config["trainer"].get("plugins"), Path()),
            enable_model_summary=False,
        )
    check_trainer(config, trainer)
    return trainer


@contextmanager
def _devices_that_are_there(trainer: Mapping[str, Any]) -> Iterator[None]:
    """Raise UserError if Lightning finds no such accelerator on this machine, or fewer devices than asked for."""
    import torch
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    try:
        yield
    except UserError:
        raise
    except (MisconfigurationException, ModuleNotFoundError, TypeError, ValueError) as error:
        gpus, why = torch.cuda.device_count(), " ".join(str(error).split()).rstrip(".!")
        none = "" if gpus else why_torch_sees_none(torch.__version__, torch.version.cuda or torch.version.hip)
        if isinstance(error, MisconfigurationException) and "plugin" in why.lower():
            raise UserError(
                f"trainer.plugins: found {trainer.get('plugins')}; Lightning refuses them: {why}"
            ) from error
        if isinstance(error, ValueError) and "strategy" in why:
            raise UserError(
                f"trainer.strategy: found {trainer.get('strategy')}; Lightning refuses it: {why}; choose trainer=ddp, "
                "trainer=fsdp2 or trainer.strategy=auto"
            ) from error
        if isinstance(error, TypeError | ValueError) and "devices" not in why:
            raise
        raise UserError(
            f"trainer.accelerator and trainer.devices: found {trainer.get('accelerator', 'auto')} and "
            f"{trainer.get('devices', 'auto')}; Lightning refuses them: {why}; torch sees "
            f"{gpus or 'no'} GPU{'s' * (gpus != 1)} here{none}; trainer.accelerator=auto trainer.devices=1 runs "
            "everywhere"
        ) from error


def _plugins(chosen: Any, run_dir: Path) -> list[Any]:
    """Return the user's plugins and, where they have no counterpart, ours: for checkpoints and against requeueing.

    Lightning's requeueing handler would save wherever the run is; `StopOnSigterm` saves where a run resumes exactly.
    """
    from lightning.fabric.plugins import CheckpointIO, ClusterEnvironment
    from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

    from rlhf_lightning.callbacks import DurableCheckpointIO

    listed = [] if chosen is None else chosen if isinstance(chosen, list) else [chosen]
    plugins = [build(each, "trainer.plugins") if isinstance(each, Mapping) else each for each in listed]
    if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
        plugins.append(DurableCheckpointIO(run_dir))
    chosen_by_user = any(isinstance(plugin, ClusterEnvironment) for plugin in plugins)
    if under_srun() and not chosen_by_user and not TorchElasticEnvironment.detect():
        plugins.append(SLURMEnvironment(auto_requeue=False))
    return plugins


def _build_logger(run: Run) -> Any:
    """Return the logger; a run in MLflow begins when the logger is opened."""
    section = run.config.get("logger")
    if not uses_mlflow(run.config):
        return build(section, "logger")
    steady = {**(section or {}), "_target_": "rlhf_lightning.callbacks.SteadyMLFlowLogger"}
    logger: SteadyMLFlowLogger = build(steady, "logger", **logger_settings(run))
    join_run(logger, run)
    return logger
