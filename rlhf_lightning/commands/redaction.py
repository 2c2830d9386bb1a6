"""Passwords and keys: used where they are needed, and never shown, saved or logged.

Three kinds of value are secret: a user and password in an address (`https://ana:pw@host`), a value under a key that
says so (`logger.tags.api_key`), and whatever a config takes from the environment (`${oc.env:TOKEN}`). The last is
written as that expression, so that the saved config still composes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

HIDDEN = "***"
_IN_ADDRESS = re.compile(r"(?<=://)[^/@\s'\"]+@")
_IN_QUERY = re.compile(
    r"([?&](?:[\w-]*(?:token|key|secret|password|passwd|pwd|signature|sig))=)[^&\s'\"]+", re.IGNORECASE
)
_SECRET_KEY = re.compile(
    r"(^|[_.-])(api_?key|access_?key|private_?key|secret(_?key)?|passwords?|passwd|pwd|credentials?|authorization|bearer|"
    r"(auth|access|api|hf|hub|bearer|refresh|session)_?token|token)$",
    re.IGNORECASE,
)
_SHORTEST = 6  # a shorter value from the environment is hidden where it stands alone, not within other text

_from_environment: dict[str, str] = {}  # value -> how the config says it


def remember_environment(config: Any) -> None:
    """Note what a composed config, not yet resolved, takes from the environment."""
    for raw, value in _interpolated(config):
        if "oc.env" in raw and isinstance(value, str) and value:
            _from_environment[value] = raw


def _interpolated(node: Any) -> Iterator[tuple[str, Any]]:
    """(as written, resolved) of every value with an interpolation, in a mapping or list of OmegaConf's."""
    keys = list(node) if isinstance(node, DictConfig) else range(len(node)) if isinstance(node, ListConfig) else []
    for key in keys:
        if OmegaConf.is_missing(node, key):
            continue
        if OmegaConf.is_interpolation(node, key):
            raw = OmegaConf.to_container(node, resolve=False)[key]  # type: ignore[index]
            yield str(raw), node[key]
        elif isinstance(node[key], DictConfig | ListConfig):
            yield from _interpolated(node[key])


def without_secrets(value: Any, key: str = "") -> Any:
    """Return a config, or a part of one, with every secret hidden.

    >>> without_secrets({"tracking_uri": "https://ana:pw@host", "tags": {"api_key": "k"}, "max_new_tokens": 8})
    {'tracking_uri': 'https://***@host', 'tags': {'api_key': '***'}, 'max_new_tokens': 8}
    """
    if isinstance(value, Mapping):
        return {name: without_secrets(part, str(name)) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(part, key) for part in value]
    if value is None or isinstance(value, bool):
        return value
    if str(value) in _from_environment:
        return _from_environment[str(value)]
    if _SECRET_KEY.search(key):
        return HIDDEN
    return shown(value) if isinstance(value, str) else value


def shown(text: str) -> str:
    """Return a text for a screen or a log, with secrets hidden.

    >>> shown("no answer from http://ana:pw@host:5000/?api_key=k")
    'no answer from http://***@host:5000/?api_key=***'
    """
    text = _IN_QUERY.sub(rf"\g<1>{HIDDEN}", _IN_ADDRESS.sub(f"{HIDDEN}@", text))
    for value in sorted(_from_environment, key=len, reverse=True):
        if len(value) >= _SHORTEST:
            text = text.replace(value, HIDDEN)
    return text
