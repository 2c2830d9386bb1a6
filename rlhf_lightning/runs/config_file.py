"""The composed config as config.yaml of a run folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf


def read_config(file: Path) -> Any:
    """Return the content of a config.yaml in plain containers; environment references stay as written."""
    return OmegaConf.to_container(OmegaConf.load(file))


def config_text(config: Mapping[str, Any]) -> str:
    """Return a config as YAML."""
    return OmegaConf.to_yaml(OmegaConf.create(dict(config)))
