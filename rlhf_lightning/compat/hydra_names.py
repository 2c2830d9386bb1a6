"""Private names of Hydra and OmegaConf."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from omegaconf import DictConfig, OmegaConf


def arguments_parser() -> ArgumentParser:
    """Return the parser of Hydra's options. `hydra.main` uses it itself, but reports errors in several lines."""
    return get_args_parser()


def jobs_of_sweep(overrides: Sequence[Any]) -> list[list[str]]:
    """Return the overrides of each job of a sweep. Hydra computes them only when it launches the jobs."""
    (jobs,) = BasicSweeper.split_arguments(list(overrides), max_batch_size=None)
    return [list(job) for job in jobs]


def without_hydra(config: DictConfig) -> DictConfig:
    """Return a config without Hydra's own node, unresolved. Public access to a key would resolve its interpolations."""
    return OmegaConf.create({key: config._get_node(key) for key in config if key != "hydra"})
