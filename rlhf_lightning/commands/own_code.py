"""Whose code an exception comes from: a user's class named in a config runs in the middle of Lightning.

What it raises is for the user to fix, including `sys.exit(0)`: a run must not end as if it had succeeded.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from rlhf_lightning.errors import AfterTrainingError, Terminated, UserError, is_out_of_memory, left_by_hand, reason

_OURS = "rlhf_lightning"
# Sections whose class calls everything a run does, so that its frames say nothing about a cause.
_AROUND_ALL = ("trainer", "optimizer", "scheduler")
_LIBRARIES = ("builtins", "torch", "transformers", "peft", "datasets")


@contextmanager
def blaming_own_code(config: Mapping[str, Any]) -> Iterator[None]:
    """Turn what a class named in `config` raises inside into a `UserError` that begins with its key.

    The innermost frame that belongs to this package or to such a class decides whose exception it is.

    Raises:
        UserError: `callbacks.mine: my_package.Mine failed in on_fit_start (line 12 of mine.py): reason`.
    """
    try:
        yield
    except (UserError, Terminated, AfterTrainingError):
        raise
    except BaseException as raised:
        error = _first_cause(raised)
        if isinstance(error, Terminated):
            raise error from None
        found = None if is_out_of_memory(error) or _is_signal(error) else _blamed(error, _modules(config))
        if found is None:
            raise
        key, target, frame, line = found
        where = f"{frame.f_code.co_name} (line {line} of {Path(frame.f_code.co_filename).name})"
        former = _what_it_handled(error, frame)
        raise UserError(f"{key}: {target} failed in {where}: {reason(error)}{former}") from raised


def _first_cause(error: BaseException) -> BaseException:
    """Return what ended a run: Lightning leaves with `sys.exit(1)` on Ctrl-C, and a hook may exit during a stop."""
    chain = [error]
    while chain[-1].__context__ is not None and len(chain) < 20:
        chain.append(chain[-1].__context__)
    stopped = next((each for each in chain if isinstance(each, Terminated)), None)
    if stopped is not None:
        return stopped
    interrupted = isinstance(error, SystemExit) and isinstance(error.__context__, KeyboardInterrupt)
    return chain[1] if interrupted and not left_by_hand(error, "lightning") else error


def _is_signal(error: BaseException) -> bool:
    return isinstance(error, KeyboardInterrupt | GeneratorExit) and not left_by_hand(error)


def _blamed(error: BaseException, modules: Mapping[str, tuple[str, str]]) -> tuple[str, str, FrameType, int] | None:
    for frame, line in reversed([*traceback.walk_tb(error.__traceback__)]):
        name = str(frame.f_globals.get("__name__", ""))
        if name in modules:
            return *modules[name], frame, line
        if name.split(".")[0] == _OURS:
            return None
    return None


def _what_it_handled(error: BaseException, frame: FrameType) -> str:
    """Return the exception that `on_exception` was called with: why the run ended before that hook itself failed."""
    before = error.__context__
    if frame.f_code.co_name != "on_exception" or before is None:
        return ""
    return f"; it was called because of this: {reason(before)}"


def _modules(config: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Return key and class of every section whose class is not this package's, by the module that defines it."""
    found: dict[str, tuple[str, str]] = {}
    for key, target in _targets(config):
        module = _module_of(target)
        if module is not None and module.split(".")[0] not in (_OURS, *_LIBRARIES):
            callback_or_own = key.startswith("callbacks.") or module.split(".")[0] != "lightning"
            if callback_or_own and key not in _AROUND_ALL:
                found.setdefault(module, (_shown_key(key), target))
    return found


def _shown_key(key: str) -> str:
    return key if key.startswith("callbacks.") else f"{key}._target_"


def _targets(section: Mapping[str, Any], key: str = "") -> Iterator[tuple[str, str]]:
    for name, value in section.items():
        below = f"{key}.{name}".lstrip(".")
        if isinstance(value, Mapping):
            if isinstance(value.get("_target_"), str):
                yield below, value["_target_"]
            yield from _targets(value, below)


def _module_of(target: str) -> str | None:
    """Return the name of the module that defines a dotted path, as far as it has been imported."""
    module_name, _, attribute = target.rpartition(".")
    made = getattr(sys.modules.get(module_name), attribute, None)
    return None if made is None else str(getattr(made, "__module__", module_name))
