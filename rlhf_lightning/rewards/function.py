"""Python functions as rewards."""

from __future__ import annotations

import importlib
import inspect
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from rlhf_lightning.errors import UserError, blaming, is_out_of_memory, key_beside, reason
from rlhf_lightning.file_hashes import sha256_of
from rlhf_lightning.reward_calls import GIVEN, RewardCall, reward_call
from rlhf_lightning.rewards.concurrent import ATTEMPTS, CONCURRENCY, Calls
from rlhf_lightning.rewards.deadline import within
from rlhf_lightning.rewards.keywords import each_row, keywords
from rlhf_lightning.rewards.protocol import Reward
from rlhf_lightning.rewards.scores import (
    BadScoreError,
    Partial,
    Scores,
    as_list,
    check_partial,
    check_result,
    filled,
    finite_number,
)
from rlhf_lightning.working_folder import import_from_working_folder

VERIFIERS = "rlhf_lightning.rewards.verifiers"

log = logging.getLogger(__name__)


class FunctionReward(Reward):
    """A Python function given by its dotted path, `my_pkg.my_fn`; modules in the working folder are found.

    Its parameters decide how it is called (see `reward_calls`). With TRL's parameters, and as an `async` function, it
    may return None for a response that it does not apply to.

    Args:
        function: the dotted path.
        key: the key that errors begin with; None: the usual key of a reward's function.
        timeout: most seconds per call; None: no limit.
        timeout_key: the key of `timeout`; None: the usual key of a reward's timeout.
        arguments: passed to the function at every call, by name.
        concurrency: most calls of an `async` function at the same time; None: 16.
        attempts: attempts per call of an `async` function, the waits between them doubling from 1 s; None: 3.

    Raises:
        UserError: there is no such module or function, or it cannot be called.
    """

    def __init__(
        self,
        function: str,
        key: str | None = None,
        timeout: float | None = None,
        timeout_key: str | None = None,
        arguments: Mapping[str, Any] | None = None,
        concurrency: int | None = None,
        attempts: int | None = None,
    ) -> None:
        self.name = function
        self.key = key or key_beside("function", "reward.")
        self.timeout, self.timeout_key = timeout, timeout_key or key_beside("timeout", "reward.")
        if timeout is not None and not 0 < timeout < float("inf"):
            raise UserError(f"{self.timeout_key}: found {timeout}; must be above 0, or null for no limit")
        self.arguments, self._beside = dict(arguments or {}), key_beside("", "reward.")
        self.function = import_function(function, self.key)
        self.call = _read_call(self.key, self.function, function, self.arguments, key_beside("arguments", "reward."))
        self.concurrency, self.attempts = concurrency or CONCURRENCY, attempts or ATTEMPTS
        if getattr(self.function, "__module__", None) == VERIFIERS:
            self._try_arguments()
        self.reads_tokens = self.call.style != "responses" or bool(getattr(self.function, "reads_tokens", False))
        self.logged: dict[str, list[float]] = {}
        self.extras: dict[str, list[Any]] = {}
        self._said = False
        self._origin = self._read_origin()  # read now, because the file may be edited during the run

    def _try_arguments(self) -> None:
        """Call a verifier without completions: it refuses its settings now, and not after the first rollout."""
        with self._own_keys():
            self.function([], **self.arguments)

    @contextmanager
    def _own_keys(self) -> Iterator[None]:
        """Put the reward's own key before what a verifier says about its settings."""
        try:
            yield
        except UserError as error:
            said = str(error)
            if said.startswith("function: "):
                raise UserError(f"{self.key}: {self.name}: {said.removeprefix('function: ')}") from error
            if said.startswith("arguments."):
                said = f"{self._beside}{said}"
                raise (
                    BadScoreError(said, error.index) if isinstance(error, BadScoreError) else UserError(said)
                ) from error
            raise

    @property
    def figures(self) -> dict[str, list[float]]:  # type: ignore[override]
        """Return what the last call has passed to TRL's `log_metric`."""
        return dict(self.logged)

    def __call__(self, prompts: list[str], responses: list[str], **columns: Any) -> Scores:
        scores = self.begin(prompts, responses, **columns)()
        without = [i for i, score in enumerate(scores) if score is None]
        if without and not self._said:
            self._said = True
            log.warning(
                "%s: %s returned None for %d of %d responses (first for response %d): no reward applies to them, so "
                "their score is 0, as in TRL; this is reported once",
                *(self.key, self.name, len(without), len(scores), without[0]),
            )
        return filled(scores)

    def begin(self, prompts: list[str], responses: list[str], **columns: Any) -> Callable[[], Partial]:
        """Start the calls of an `async` function; return a function that waits for the scores.

        Raises:
            UserError: by that function: see `check_scores`; the function has raised, or has not returned in time.
        """
        sampled, n = columns.get("sampled"), len(responses)
        self.logged, self.extras = {}, {}
        if self.call.style == "responses":
            given = {**columns, "prompts": prompts, "responses": responses}
        else:
            given = keywords(prompts, responses, columns, sampled, self.call.named)
        if self.call.style == "each":
            given["responses"] = responses
        if self.call.style == "completions":
            given |= {"log_metric": self._log_metric, "log_extra": partial(self._log_extra, n)}
        self._check_needed(given)
        given |= self.arguments
        if not self.call.waits:
            return lambda: self._now(given, n)
        calls = Calls(f"{self.key}: {self.name}", self._late(), self.timeout, self.concurrency, self.attempts)
        if self.call.style != "each":
            whole = calls.start([lambda: self.function(**given)])
            return lambda: self._checked(whole()[0], n)
        rows = each_row(given, n, self.arguments)
        each = calls.start([partial(self.function, **row) for row in rows])
        return lambda: self._checked(each(), n)

    def _now(self, given: dict[str, Any], n: int) -> Partial:
        """Return the scores, checked within the limit too: a user's own list type may compute its items on access."""
        texts = {name: given[name] for name in ("prompts", "responses")} if self.call.style == "responses" else {}
        others = {name: value for name, value in given.items() if name not in texts}
        with self._own_keys(), blaming(f"{self.key}: {self.name} failed"):
            call = partial(self.function, *texts.values(), **others)
            try:
                return within(self.timeout, lambda: self._checked(call(), n), self._late())
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                raise UserError(
                    f"{self.key}: {self.name} ran out of memory: {reason(error)}; let it use less, or lower "
                    "rollout.batch_size; rlhf-plan with the same overrides says what the run itself needs"
                ) from error

    def _checked(self, scores: Any, n: int) -> Partial:
        if self.call.style == "responses" and not self.call.waits:
            return list(check_result(scores, n, self.name, self.key))
        return check_partial(scores, n, self.name, self.key)

    def _check_needed(self, given: Mapping[str, Any]) -> None:
        missing = next((each for each in self.call.needed if each not in given), None)
        if missing is None:
            return
        columns = sorted(given.keys() - {*GIVEN["completions"], "responses", "ended"})
        what = {
            "trainer_state": "trainer_state, which only a training run has",
            "completion_ids": "completion_ids, which only sampled responses have",
        }.get(missing, f"the column {missing!r}, which the rows do not have")
        raise UserError(
            f"{self.key}: {self.name} needs {what}; it is given {', '.join(columns) or 'no columns'}; give the rows "
            f"that column, or the parameter {missing} a default"
        )

    def _log_metric(self, name: str, value: float) -> None:
        who = f"{self.key}: {self.name}: log_metric"
        if not isinstance(name, str) or not name.isprintable() or {"", ".", ".."} & {*name.split("/")}:
            raise UserError(f"{who} has the name {name!r:.80}; must be a name of printable characters, such as length")
        try:
            number = finite_number(value, f"{who}: {name}")
        except BadScoreError as error:  # it is about no response
            raise UserError(str(error)) from None
        self.logged.setdefault(name, []).append(number)

    def _log_extra(self, n: int, column: str, values: Sequence[Any]) -> None:
        who = f"{self.key}: {self.name}: log_extra: the column {column!r:.80}"
        if not isinstance(column, str):
            raise UserError(f"{who} has a {type(column).__name__} for a name; must be a text")
        found = as_list(values, f"{who} is {type(values).__name__}, expected a list of {n} values")
        if len(found) != n:
            raise UserError(f"{who} has {len(found)} values for {n} responses; give one for each")
        with blaming(f"{who} cannot be written as JSON"):
            json.dumps(found, default=str)
        self.extras[column] = found

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
        marks = {self.key: f"{self.name} {sha256_of(Path(file))}"} if found and file is not None else {}
        given = {f"{self.key}.arguments.{name}": repr(value) for name, value in sorted(self.arguments.items())}
        return marks | given


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


def _read_call(key: str, function: Any, name: str, arguments: Mapping[str, Any], arguments_key: str) -> RewardCall:
    """Return how a function is called. Raises UserError for something that cannot be called as a reward."""
    if not callable(function):
        raise UserError(f"{key}: {name} is not a function ({type(function).__name__})")
    waits = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise UserError(f"{key}: {name} is a generator; write a function that returns a list of numbers")
    try:
        parameters = [*inspect.signature(function).parameters.values()]
    except (TypeError, ValueError):  # a builtin without a signature
        return RewardCall("responses", waits, frozenset(), ())
    return reward_call(key, name, parameters, waits, arguments, arguments_key)
