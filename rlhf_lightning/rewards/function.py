"""Python functions as rewards."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

from rlhf_lightning.errors import UserError, blaming, key_beside
from rlhf_lightning.file_hashes import sha256_of
from rlhf_lightning.rewards.deadline import within
from rlhf_lightning.rewards.protocol import Reward
from rlhf_lightning.rewards.scores import Scores, check_result
from rlhf_lightning.working_folder import import_from_working_folder


class FunctionReward(Reward):
    """A Python function given by its dotted path, `my_pkg.my_fn`; modules in the working folder are found.

    Args:
        function: the dotted path.
        key: the key that errors begin with; None: the usual key of a reward's function.
        timeout: most seconds per call; None: no limit.
        timeout_key: the key of `timeout`; None: the usual key of a reward's timeout.

    Raises:
        UserError: there is no such module or function.
    """

    def __init__(
        self,
        function: str,
        key: str | None = None,
        timeout: float | None = None,
        timeout_key: str | None = None,
    ) -> None:
        self.name = function
        self.key = key or key_beside("function", "reward.")
        self.timeout, self.timeout_key = timeout, timeout_key or key_beside("timeout", "reward.")
        if timeout is not None and not 0 < timeout < float("inf"):
            raise UserError(f"{self.timeout_key}: found {timeout}; must be above 0, or null for no limit")
        self.function = import_function(function, self.key)
        _check_signature(self.key, self.function, function)
        self.reads_tokens = bool(getattr(self.function, "reads_tokens", False))
        self._origin = self._read_origin()  # read now, because the file may be edited during the run

    def __call__(self, prompts: list[str], responses: list[str], **columns: Any) -> Scores:
        with blaming(f"{self.key}: {self.name} failed"):
            return within(self.timeout, lambda: self._scores(prompts, responses, columns), self._late())

    def _scores(self, prompts: list[str], responses: list[str], columns: dict[str, Any]) -> Scores:
        """Return the scores, checked within the limit too: a user's own list type may compute its items on access."""
        scores = self.function(prompts, responses, **columns)
        return check_result(scores, len(responses), self.name, self.key)

    def _late(self) -> str:
        key = self.timeout_key
        return (
            f"{self.key}: {self.name} has not returned within {self.timeout} s ({key}); find out why it hangs, give "
            f"it a time limit of its own, or raise {key}"
        )

    def origin(self) -> dict[str, str]:
        """Return the hash of the source file, by the function's key, which a resumed run must find unchanged."""
        return dict(self._origin)

    def _read_origin(self) -> dict[str, str]:
        try:
            file = inspect.getsourcefile(inspect.unwrap(self.function))
        except TypeError:  # implemented in C, or a callable object
            file = getattr(inspect.getmodule(type(self.function)), "__file__", None)
        found = file is not None and Path(file).is_file()
        return {self.key: f"{self.name} {sha256_of(Path(file))}"} if found and file is not None else {}


def import_function(function: str, key: str) -> Any:
    """Return what a dotted path names; modules in the working folder are found.

    Raises:
        UserError: there is no such module or function.
    """
    module_name, _, attribute = function.rpartition(".")
    if not module_name:
        raise UserError(f"{key}: {function!r} is not a dotted path such as my_pkg.my_fn")
    import_from_working_folder()
    try:
        with blaming(f"{key}: cannot import {module_name}"):
            module = importlib.import_module(module_name)
        return getattr(module, attribute)
    except AttributeError:
        raise UserError(f"{key}: {module_name} has no {attribute!r}") from None


def _check_signature(key: str, function: Any, name: str) -> None:
    """Raise UserError for something that cannot be called as `function(prompts, responses, ended=..., **columns)`."""
    if not callable(function):
        raise UserError(f"{key}: {name} is not a function ({type(function).__name__})")
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        raise UserError(f"{key}: {name} is a coroutine or generator; write a function that returns a list of numbers")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a builtin without a signature
        return
    kinds = [parameter.kind for parameter in signature.parameters.values()]
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        raise UserError(
            f"{key}: {name}{signature} does not take **columns, which carry the rows' other columns and "
            "whether each response ended; add **columns to its parameters"
        )
    try:
        signature.bind([], [])
    except TypeError as error:
        raise UserError(
            f"{key}: {name}{signature} cannot be called as (prompts, responses, **columns): {error}"
        ) from None
