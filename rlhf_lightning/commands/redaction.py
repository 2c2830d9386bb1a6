"""Passwords and keys: used where they are needed, and never shown, saved or logged.

Three kinds of value are secret: a user and password in an address (`https://ana:pw@host`), a value under a key whose
name says so (`logger.tags.api_key`), and whatever a config takes from the environment (`${oc.env:TOKEN}`). The last
kind is written as that expression, so that the saved config still composes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from rlhf_lightning.secret_text import (
    is_secret_key,
    remember,
    remember_address,
    remember_expression,
    remember_variables,
)

_VARIABLE = re.compile(r"oc\.env:\s*['\"]?(\w+)")
# Where and who: a path or a name made from one of these is not a secret.
_PLACES = {
    "HOME",
    "USER",
    "LOGNAME",
    "USERNAME",
    "PWD",
    "HOSTNAME",
    "SHELL",
    "LANG",
    "PATH",
    "TMPDIR",
    "SCRATCH",
    "WORK",
}


def remember_secrets(config: Any) -> None:
    """Register what a composed, unresolved config takes from the environment and holds under secret keys."""
    remember_variables()
    for raw, value in _interpolated(config):
        variables = _VARIABLE.findall(raw)
        if "oc.env" in raw and isinstance(value, str) and value:
            remember_expression(value, raw)
            if not variables or not set(variables) <= _PLACES:
                remember(value)
        for name in set(variables) - _PLACES:
            remember(os.environ.get(name, ""))
    _remember_values(OmegaConf.to_container(config, resolve=False))


def _remember_values(value: Any, secret: bool = False) -> None:
    if isinstance(value, Mapping):
        for name, part in value.items():
            _remember_values(part, secret or is_secret_key(str(name)))
    elif isinstance(value, list | tuple):
        for part in value:
            _remember_values(part, secret)
    elif isinstance(value, str) and "${" not in value:
        (remember if secret and value != "???" else remember_address)(value)


def remember_words(words: list[str]) -> None:
    """Register the secrets of a command line before it is composed: errors quote what cannot be composed."""
    for word in words:
        key, _, value = word.partition("=")
        for part in value.split(","):
            (remember if is_secret_key(key) and "${" not in part else remember_address)(part.strip("'\""))


def _interpolated(node: Any) -> Iterator[tuple[str, Any]]:
    """Yield (as written, resolved) for every value with an interpolation in an OmegaConf mapping or list."""
    keys = list(node) if isinstance(node, DictConfig) else range(len(node)) if isinstance(node, ListConfig) else []
    for key in keys:
        if OmegaConf.is_missing(node, key):
            continue
        if OmegaConf.is_interpolation(node, key):
            raw = OmegaConf.to_container(node, resolve=False)[key]  # type: ignore[index]
            yield str(raw), node[key]
        elif isinstance(node[key], DictConfig | ListConfig):
            yield from _interpolated(node[key])
