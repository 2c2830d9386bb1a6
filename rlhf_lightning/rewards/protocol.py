"""The interface of rewards: a function of prompts and responses, and the optional capabilities of a class."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from rlhf_lightning.value_types import Kernels

Score = float | None
"""None: the reward does not apply to the response."""


class RewardFunction(Protocol):
    """Scores responses: one finite number each, or one for each token of the response; higher is better.

    A list per response has as many numbers as the response has tokens, its EOS included. They are credited to their
    tokens, and their sum is the response's score.

    `columns` carries the data row's other columns (each a list), `messages` for conversational prompts, and `ended`:
    whether each response produced an EOS. A plain function is enough; a class that can do more is a `Reward`.
    """

    def __call__(self, prompts: list[str], responses: list[str], **columns: Any) -> list[float] | list[list[float]]: ...


class Reward:
    """A reward that can do more than score. Each method has a default: override what differs.

    Attributes:
        name: what it is called in errors about scores; empty: the name of its class.
        key: where it was named, such as `reward.function`; empty: `reward`.
        reads_tokens: it is called with `sampled=`, a SampledTokens, besides the texts.
        parts: the last scores by part, if it is a sum; for logging. None where a part did not apply.
        normalized: weight and last scores of each part, if parts are normalised before they are weighted; else empty.
        figures: other numbers about the last responses, one each, by name; logged as `reward/<name>`.
        extras: further columns of the last responses, by name; for the table of samples.
    """

    name: str = ""
    key: str = ""
    reads_tokens: bool = False
    parts: Mapping[str, Sequence[Score]] = {}
    normalized: Mapping[str, tuple[float, list[float] | list[list[float]]]] = {}
    figures: Mapping[str, list[float]] = {}
    extras: Mapping[str, Sequence[Any]] = {}

    def __call__(self, prompts: list[str], responses: list[str], **columns: Any) -> list[float] | list[list[float]]:
        """Return the scores (see RewardFunction)."""
        raise NotImplementedError

    def begin(self, prompts: list[str], responses: list[str], **columns: Any) -> Callable[[], Sequence[Any]]:
        """Start to score, and return a function that waits for the scores: several that wait for others overlap.

        None among them says that the reward does not apply to the response.
        """
        return lambda: self(prompts, responses, **columns)

    def to(self, device: torch.device | str) -> Reward:
        """Move its computation to the policy's device; called once, before the first rollout."""
        return self

    def use_kernels(self, kernels: Kernels) -> None:
        """Load its own networks with the run's `model.kernels`, as far as they fit; called before any is loaded."""

    def share_backbone(self, policy: nn.Module) -> None:
        """Use the policy's own base, if this reward is an adapter on it; called once, in layout `shared`."""

    def check_length(self, max_new_tokens: int) -> None:
        """Raise UserError if it cannot read a response of this many tokens."""

    def origin(self) -> dict[str, str]:
        """Return its constituents, key to mark (such as a file's hash), which a resumed run must find unchanged."""
        return {}


def as_reward(reward: RewardFunction) -> Reward:
    """Return the reward itself if it is a `Reward`; else a wrapper that calls those of the methods that it has."""
    return reward if isinstance(reward, Reward) else _Plain(reward)


class _Plain(Reward):
    """A function, or an object that has some of a Reward's methods and attributes."""

    def __init__(self, given: RewardFunction) -> None:
        self.given: Any = given
        self.name = str(getattr(given, "name", type(given).__name__))
        self.key = str(getattr(given, "key", None) or "")
        self.reads_tokens = bool(getattr(given, "reads_tokens", False))

    @property
    def parts(self) -> Mapping[str, Sequence[Score]]:  # type: ignore[override]
        found: Mapping[str, Sequence[Score]] = getattr(self.given, "parts", {})
        return found

    def __call__(self, prompts: list[str], responses: list[str], **columns: Any) -> list[float] | list[list[float]]:
        scores: list[float] | list[list[float]] = self.given(prompts, responses, **columns)
        return scores

    def to(self, device: torch.device | str) -> Reward:
        self._ask("to", device)
        return self

    def use_kernels(self, kernels: Kernels) -> None:
        self._ask("use_kernels", kernels)

    def share_backbone(self, policy: nn.Module) -> None:
        self._ask("share_backbone", policy)

    def check_length(self, max_new_tokens: int) -> None:
        self._ask("check_length", max_new_tokens)

    def origin(self) -> dict[str, str]:
        return dict(self._ask("origin") or {})

    def _ask(self, method: str, *args: Any) -> Any:
        found = getattr(self.given, method, None)
        return found(*args) if callable(found) else None
