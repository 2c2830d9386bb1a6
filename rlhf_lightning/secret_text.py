"""Hiding passwords and keys in text on its way to a screen, a log or a file: by pattern, and by value.

An address with a user and password, a parameter `api_key=...` and tokens of well-known forms are recognised by pattern.
What a config holds under `password`, or the environment under `HF_TOKEN`, is remembered, and hidden wherever a library
quotes it.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, unquote

HIDDEN = "***"
_SHORTEST = 6  # a shorter value is hidden only as a separate word

_WORDS = r"passw(?:or)?d|passphrase|secret|credential|api[_-]?key|access[_-]?key|private[_-]?key|account[_-]?key"
_SECRET_KEY = re.compile(
    rf"{_WORDS}|authori[sz]ation|(^|[_.-])(pwd|pass|pat|bearer|cookies?|(basic_|http_)?auth|jwt|dsn|sas)$|"
    r"(^|[_.-])connection[_-]?string$|token(?:$|[_-]?\d+$)|(auth|access|api|hf|hub|bearer|refresh|session)[_-]?tokens?",
    re.IGNORECASE,
)
# `user:password@` up to the last @; the password may contain slashes and quotes, except where a port would be.
_IN_ADDRESS = re.compile(
    r"(?<=://)(?:[^/?#\s:@'\"]*:(?!\d{1,5}(?:[/?#'\"\s,;)\]}]|$))[^\s]*@|[^/?#\s'\"<>]*@)", re.IGNORECASE
)
_IN_QUERY = re.compile(
    rf"([?&#;](?:[\w.-]*(?:token|key|{_WORDS}|pwd|signature|sig|auth|jwt)))(?:=|%3D)[^&\s'\"<>]+", re.IGNORECASE
)
_IN_SETTINGS = re.compile(rf"\b((?:[\w.-]*(?:{_WORDS}|access_token|auth_token)|pwd))=(?!=)([^\s&;,'\"<>)\]}}]+)", re.I)
_IN_QUOTES = re.compile(rf"([\"'][\w.-]*(?:{_WORDS}|authorization|token|pwd)[\"']\s*:\s*)([\"'])(?:(?!\2).)+\2", re.I)
_IN_HEADER = re.compile(r"(authorization[\"']?\s*[:=]\s*[\"']?)(?:(?:basic|bearer|token|digest)\s+)?[^\s\"',]+", re.I)
_BEARER = re.compile(r"\b(bearer\s+)[\w.~+/=-]{12,}", re.IGNORECASE)
_TOKENS = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|sk-(?=[\w-]*\d)[\w-]{20,}|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|"
    r"glpat-[\w-]{16,}|xox[abprs]-[\w-]{10,}|(?:AKIA|ASIA)[0-9A-Z]{12,}|AIza[\w-]{30,}|dapi[0-9a-f]{32}|"
    r"eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*)"
)

_values: dict[str, str] = {}  # secret -> what is shown instead
_from_environment: dict[str, str] = {}  # a config's value -> the expression that produces it


def is_secret_key(key: str) -> bool:
    """Return whether a value under this key of a config, or name of the environment, is a secret.

    >>> is_secret_key("logger.tags.api_key"), is_secret_key("rollout.max_new_tokens")
    (True, False)
    """
    return bool(_SECRET_KEY.search(key))


def remember(value: str, instead: str = HIDDEN) -> None:
    """Hide this value, and its spellings in addresses and headers, wherever it occurs from now on."""
    for spelled in {value, quote(value, safe=""), unquote(value), repr(value)[1:-1]}:
        if len(spelled) >= _SHORTEST:
            _values[spelled] = instead


def remember_expression(value: str, raw: str) -> None:
    """Save this config value as the expression that produces it, such as `${oc.env:TOKEN}`."""
    _from_environment[value] = raw


def remember_address(text: str) -> None:
    """Remember the password in an address, as it is written, decoded, and as the header that it becomes."""
    scheme, found, rest = text.partition("://")
    credentials, at, _ = rest.partition("?")[0].rpartition("@")
    if not (scheme and found and at):
        return
    user, colon, password = credentials.partition(":")
    remember(password if colon else user)
    remember(base64.b64encode(unquote(credentials).encode()).decode())


def remember_variables(environment: Mapping[str, str] | None = None) -> None:
    """Remember the values of environment variables such as `HF_TOKEN`, and the passwords of proxies."""
    for name, value in dict(os.environ if environment is None else environment).items():
        if is_secret_key(name) and not name.endswith("PWD") and not os.path.exists(value):
            remember(value)
        elif "://" in value:
            remember_address(value)


def shown(text: str) -> str:
    """Return a text for a screen, a log or a file, with secrets hidden.

    >>> shown("no answer from http://ana:pw@host:5000/?api_key=k")
    'no answer from http://***@host:5000/?api_key=***'
    """
    for value in sorted(_values, key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    text = _IN_QUERY.sub(rf"\g<1>={HIDDEN}", _IN_ADDRESS.sub(f"{HIDDEN}@", text))
    text = _IN_QUOTES.sub(rf"\g<1>\g<2>{HIDDEN}\g<2>", _IN_SETTINGS.sub(rf"\g<1>={HIDDEN}", text))
    text = _BEARER.sub(rf"\g<1>{HIDDEN}", _IN_HEADER.sub(rf"\g<1>{HIDDEN}", text))
    return _TOKENS.sub(HIDDEN, text)


def without_secret_keys(tags: Mapping[str, Any]) -> dict[str, Any]:
    """Return tags as a store receives them, with values under secret keys hidden.

    >>> without_secret_keys({"team": "a", "api_key": "k"})
    {'team': 'a', 'api_key': '***'}
    """
    return {key: HIDDEN if is_secret_key(str(key)) else value for key, value in tags.items()}


def without_secrets(value: Any, key: str = "") -> Any:
    """Return a config, or a part of one, with every secret hidden.

    >>> without_secrets({"tracking_uri": "https://ana:pw@host", "tags": {"api_key": "k"}, "max_new_tokens": 8})
    {'tracking_uri': 'https://***@host', 'tags': {'api_key': '***'}, 'max_new_tokens': 8}
    """
    if isinstance(value, Mapping):
        return {name: without_secrets(part, key if is_secret_key(key) else str(name)) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(part, key) for part in value]
    if value is None or isinstance(value, bool):
        return value
    if str(value) in _from_environment:
        return _from_environment[str(value)]
    if is_secret_key(key) and "${" not in str(value):
        return HIDDEN
    return shown(value) if isinstance(value, str) else value
