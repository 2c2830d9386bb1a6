"""Quoting values in Hydra's grammar and the shell's, so that they arrive unchanged."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping

_PLAIN = re.compile(r"(?:\.{0,2}/)?[A-Za-z_][\w.-]*(?:/[\w.-]+)*/?", re.ASCII)
_WORDS_WITH_A_MEANING = {"null", "true", "false", "inf", "nan", "yes", "no", "on", "off"}


def quoted(text: str) -> str:
    r"""Return a text as the value of an override, quoted if Hydra would not take it literally.

    Within Hydra's quotes, backslashes are literal unless a quote or `${` follows.

    >>> print(quoted("outputs/mine"), quoted("null"), quoted('a "b"'), quoted("${x}"))
    outputs/mine "null" "a \"b\"" "\${x}"
    """
    if _PLAIN.fullmatch(text) and text.lower() not in _WORDS_WITH_A_MEANING:
        return text
    inside = re.sub(r'(\\*)("|\$\{|$)', _escaped, text)
    return f'"{inside}"'


def shell_words(overrides: Mapping[str, object]) -> str:
    """Return overrides as they are typed in a shell.

    >>> print(shell_words({"ckpt": "last", "run_dir": "my runs/1"}))
    ckpt=last 'run_dir="my runs/1"'
    """
    return " ".join(shlex.quote(f"{key}={quoted(str(value))}") for key, value in overrides.items())


def _escaped(found: re.Match[str]) -> str:
    return found[1] * 2 + (f"\\{found[2]}" if found[2] else "")
