"""How a reward function is called: decided by the names of its parameters, before anything is imported and in the run.

There are three ways. `(prompts, responses, **columns)` gets lists of texts. TRL's `completions` or `completion_ids`
gets everything by keyword, conversations as lists of messages. An async function of `response` or `completion` is
called once per response, with single values.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from rlhf_lightning.errors import UserError
from rlhf_lightning.value_checks import did_you_mean, nearest

Style = Literal["responses", "completions", "each"]

# What a function may be given besides the rows' columns.
GIVEN: dict[str, tuple[str, ...]] = {
    "responses": (),
    "completions": ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric"),
    "each": ("prompt", "response", "completion", "completion_ids", "ended"),
}


@dataclass(frozen=True)
class RewardCall:
    """How a function is called.

    Attributes:
        style: `responses`: two lists, then columns; `completions`: by keyword, as in TRL; `each`: once per response.
        waits: whether it is an `async` function.
        named: its parameters' names.
        needed: names that it cannot be called without, beyond what every call has: columns, mostly.
    """

    style: Style
    waits: bool
    named: frozenset[str]
    needed: tuple[str, ...]


def reward_call(
    key: str,
    name: str,
    parameters: Sequence[inspect.Parameter],
    waits: bool,
    arguments: Collection[str] = (),
    arguments_key: str = "reward.arguments",
) -> RewardCall:
    """Return how a function with these parameters is called as a reward.

    Args:
        key: where it was named, such as `reward.function`.
        name: its dotted path.
        parameters: its parameters.
        waits: whether it is an `async` function.
        arguments: the names of its own settings.
        arguments_key: where they were given.

    Raises:
        UserError: it cannot be called in any of the ways, or has no such setting.
    """
    who, kinds = f"{key}: {name}{inspect.Signature(parameters)}", {each.kind for each in parameters}
    named = {each.name: each for each in parameters if each.kind in _BY_NAME}
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        raise UserError(
            f"{who} does not take **columns, which carry the rows' other columns and "
            "whether each response ended; add **columns to its parameters"
        )
    style = _style(parameters, named, waits)
    given = {"prompts", "responses"} if style == "responses" else {*GIVEN[style]}
    own = {each for each in named if each not in given}
    unknown = next((each for each in arguments if each not in own), None)
    if unknown is not None:
        allowed = f"allowed: {', '.join(sorted(own))}" if own else "it has no settings"
        raise UserError(
            f"{arguments_key}.{unknown}: {name} takes no such argument; {allowed}{did_you_mean(nearest(unknown, own))}"
        )
    needed = [each for each, it in named.items() if it.default is it.empty and each not in arguments]
    if style == "responses":
        try:
            inspect.Signature(parameters).bind([], [], **dict.fromkeys(arguments))
        except TypeError as error:
            raise UserError(f"{who} cannot be called as (prompts, responses, **columns): {error}") from None
    elif any(each.kind is each.POSITIONAL_ONLY for each in parameters):
        raise UserError(f"{who} cannot be called by keyword, as TRL calls it; remove the / from its parameters")
    always = {"prompts", "responses"} if style == "responses" else {*GIVEN[style]} - {"trainer_state", "completion_ids"}
    return RewardCall(style, waits, frozenset(named), tuple(each for each in needed if each not in always))


_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def _style(parameters: Sequence[inspect.Parameter], named: Collection[str], waits: bool) -> Style:
    if {"completions", "completion_ids"} & {*named}:
        return "completions"
    if waits and {"response", "completion"} & {*named}:
        return "each"
    positional = [each.name for each in parameters if each.kind in _POSITIONAL]
    takes_any = any(each.kind is each.VAR_POSITIONAL for each in parameters)
    reads_keywords = not takes_any and {*positional} <= {"prompts"}  # it takes the completions from **kwargs
    return "completions" if reads_keywords else "responses"


_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
