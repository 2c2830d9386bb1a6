"""Several rewards as one, and the construction of a reward from plain settings."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from typing_extensions import TypedDict

from rlhf_lightning.errors import UserError, key_beside, named, named_as
from rlhf_lightning.judging.settings import JudgeSettings
from rlhf_lightning.models import step_separator as separator_of
from rlhf_lightning.models.loading import Dtype
from rlhf_lightning.rewards.ensemble import Combine, Ensemble
from rlhf_lightning.rewards.function import FunctionReward
from rlhf_lightning.rewards.judge import JudgeReward
from rlhf_lightning.rewards.model import ModelReward
from rlhf_lightning.rewards.process import Aggregation, ProcessReward
from rlhf_lightning.rewards.protocol import Reward, RewardFunction, Score, as_reward
from rlhf_lightning.rewards.remote import RemoteReward
from rlhf_lightning.rewards.samples import SampledTokens
from rlhf_lightning.rewards.scores import Scores, at_last_token, check_partial, filled, per_token, totals
from rlhf_lightning.rewards.steps import StepwiseReward
from rlhf_lightning.setting_rules import check_calls, check_one_kind, check_reward, part_names
from rlhf_lightning.value_types import Attention, Count, Kernels, NonNegative, Number, Seconds, Text

log = logging.getLogger(__name__)


class WeightedSum(Reward):
    """r = sum over i of w_i r_i. The parts of the last call remain available by name, for logging.

    A part that returns None for a response is left out of its sum, as in TRL: no other weight changes. Parts that wait
    for others (`async` functions, servers) wait at the same time.

    Args:
        rewards: the parts, by name.
        weights: their weights, by the same names.
        normalize: in training, each part counts as (score - running mean) / running std, by its own moments over all
            responses so far; the result of a call, and what is logged, stay unnormalised.
        key: where the parts were named.
    """

    reads_tokens = True

    def __init__(
        self,
        rewards: Mapping[str, RewardFunction],
        weights: Mapping[str, float],
        normalize: bool = False,
        key: str = "reward.components",
    ) -> None:
        if set(rewards) != set(weights):
            raise UserError(f"{key}: rewards {sorted(rewards)} and weights {sorted(weights)} differ")
        self.name, self.key = "+".join(rewards), key
        self.rewards, self.weights = dict(rewards), dict(weights)
        self.parts: dict[str, list[Score]] = {}
        self.results: dict[str, Scores] = {}
        self.normalize, self._said = normalize, False

    @property
    def normalized(self) -> dict[str, tuple[float, Scores]]:  # type: ignore[override]
        """Return weight and last scores of each part, if each is to be normalised."""
        return {name: (self.weights[name], result) for name, result in self.results.items()} if self.normalize else {}

    @property
    def figures(self) -> dict[str, list[float]]:  # type: ignore[override]
        """Return the parts' figures, by the names of figure and part."""
        parts = {name: as_reward(part).figures for name, part in self.rewards.items()}
        return {f"{figure}/{name}": found for name, part in parts.items() for figure, found in part.items()}

    @property
    def extras(self) -> dict[str, Sequence[Any]]:  # type: ignore[override]
        """Return the further columns of all parts."""
        return {name: x for part in self.rewards.values() for name, x in as_reward(part).extras.items()}

    def origin(self) -> dict[str, str]:
        """Return the parts' constituents and weights, by key, which a resumed run must find unchanged."""
        parts = [as_reward(part).origin() for part in self.rewards.values()]
        weights = {f"{self.key}.{name}.weight": repr(float(weight)) for name, weight in self.weights.items()}
        normalized = {f"{self.key.rpartition('.')[0]}.normalize_parts": "true"} if self.normalize else {}
        return {key: mark for part in parts for key, mark in part.items()} | weights | normalized

    def to(self, device: torch.device | str) -> WeightedSum:
        """Move every part that holds a network."""
        for reward in self.rewards.values():
            as_reward(reward).to(device)
        return self

    def use_kernels(self, kernels: Kernels) -> None:
        """Let the parts' networks compute with these kernels, as far as they fit."""
        for reward in self.rewards.values():
            as_reward(reward).use_kernels(kernels)

    def share_backbone(self, policy: nn.Module) -> None:
        """Let every part that is an adapter on the policy's base use that base."""
        for reward in self.rewards.values():
            as_reward(reward).share_backbone(policy)

    def check_length(self, max_new_tokens: int) -> None:
        """Raise UserError if a part cannot read a response of this many tokens."""
        for reward in self.rewards.values():
            as_reward(reward).check_length(max_new_tokens)

    def __call__(self, prompts: list[str], responses: list[str], **columns: Any) -> Scores:
        n, sampled = len(responses), columns.get("sampled")
        lengths = [len(each) for each in sampled.responses] if isinstance(sampled, SampledTokens) else None
        texts = {name: column for name, column in columns.items() if not isinstance(column, SampledTokens)}
        begun = {name: as_reward(reward) for name, reward in self.rewards.items()}
        waiting = {
            name: part.begin(prompts, responses, **(columns if part.reads_tokens else texts))
            for name, part in begun.items()
        }
        found = {name: check_partial(wait(), n, name, f"{self.key}.{name}", lengths) for name, wait in waiting.items()}
        self._check_normalized(found)
        self.results = {name: filled(part, lengths) for name, part in found.items()}
        self.parts = {
            name: [None if score is None else total for score, total in zip(found[name], totals(result), strict=True)]
            for name, result in self.results.items()
        }
        self._look_for_responses_without_reward(n)
        return self._sum(self.results, n)

    def _sum(self, results: Mapping[str, Scores], n: int) -> Scores:
        """Return the weighted sum, per token if any part is; the others' scores are on the last token."""
        tokens = {name: result for name, result in results.items() if per_token(result)}
        if not tokens:
            return [sum(self.weights[name] * (part[i] or 0.0) for name, part in self.parts.items()) for i in range(n)]
        first = next(iter(tokens.values()))
        for name, result in tokens.items():
            for i in range(n):
                if len(result[i]) != len(first[i]):
                    raise UserError(
                        f"{self.key}.{name}: returned {len(result[i])} numbers for response {i}, and another "
                        f"part {len(first[i])}; return one for each of its tokens"
                    )
        placed = {name: at_last_token(result, first) for name, result in results.items()}
        return [
            [sum(self.weights[name] * part[i][t] for name, part in placed.items()) for t in range(len(first[i]))]
            for i in range(n)
        ]

    def _look_for_responses_without_reward(self, n: int) -> None:
        without = [i for i in range(n) if all(part[i] is None for part in self.parts.values())]
        if without and not self._said:
            self._said = True
            log.warning(
                "%s: all parts returned None for %d of %d responses (first for response %d): no reward applies to "
                "them, so their score is 0, as in TRL; this is reported once",
                *(self.key, len(without), n, without[0]),
            )

    def _check_normalized(self, found: Mapping[str, Sequence[Any]]) -> None:
        name = next((name for name, part in found.items() if None in part), None)
        if self.normalize and name is not None:
            raise UserError(
                f"{self.key}.{name}: returned None for a response, but normalize_parts needs a number for each; return "
                "one, or set normalize_parts=false"
            )


class RewardPart(TypedDict, total=False):
    """One part of a weighted sum: a function, a model, several models or a judge, and its weight.

    Attributes:
        function: a Python function (prompts, responses, **columns) -> scores, by dotted path.
        arguments: passed to the function by name.
        url: a server that answers requests with scores.
        key_env: the environment variable with the key for that server.
        model: a trained reward model: the run folder of a reward run, or a Hugging Face folder.
        models: several reward models, whose scores are combined.
        judge: a model that rates each response by principles.
        combine: how the scores of several models are combined.
        std_coef: k of combine=mean_minus_std.
        aggregation: one score from those of the steps, for a process reward model.
        step_separator: text between steps, for a function that returns one number per step.
        weight: of the part's score in the sum; default 1.
        standardize: true: (score - mean) / std, the moments of held-out scores that a reward model carries.
        dtype: of the reward model.
        attn_implementation: of the reward model; null: what the family has.
    """

    function: Text | None
    arguments: dict[str, Any] | None
    url: Text | None
    key_env: Text | None
    model: Text | None
    models: list[Text] | None
    judge: JudgeSettings | None
    combine: Combine
    std_coef: NonNegative
    aggregation: Aggregation | None
    step_separator: Text | None
    weight: Number
    standardize: bool
    dtype: Dtype
    attn_implementation: Attention | None


def make_reward(
    function: Text | None = None,
    model: Text | None = None,
    components: Mapping[str, RewardPart] | None = None,
    judge: JudgeSettings | None = None,
    batch_size: Count = 32,
    standardize: bool = False,
    dtype: Dtype = "float32",
    attn_implementation: Attention | None = None,
    timeout: Seconds | None = None,
    models: list[Text] | None = None,
    combine: Combine = "mean",
    std_coef: NonNegative = 1.0,
    normalize_parts: bool = False,
    arguments: dict[str, Any] | None = None,
    functions: list[Text] | None = None,
    weights: list[Number] | None = None,
    concurrency: Count | None = None,
    attempts: Count | None = None,
    url: Text | None = None,
    key_env: Text | None = None,
    aggregation: Aggregation | None = None,
    step_separator: Text | None = None,
) -> RewardFunction:
    """Return the reward that the settings describe: exactly one function, model, list of either, sum, judge or url.

    Args:
        function: dotted path of a Python function (see RewardFunction).
        model: a reward model's run folder, Hugging Face folder or hub name.
        components: `{name: {function, model or judge, weight}}`, summed with their weights (1 if not given).
        judge: settings of a model that rates each response (see JudgeReward).
        batch_size: responses that a reward model scores at a time.
        standardize: for a reward model, see ModelReward. A component has its own setting.
        dtype, attn_implementation: for a reward model, see `load_causal_lm`. A component has its own settings.
        timeout: most seconds per call of a function, and per attempt of a request; None: no limit for a function.
        models: reward models, two or more, as for `model`; see Ensemble.
        combine, std_coef: how the scores of several models are combined, see Ensemble.
        normalize_parts: normalise each component by its own running moments before it is weighted, see WeightedSum.
        arguments: passed to the function by name.
        functions: dotted paths, summed with `weights`: TRL's `reward_funcs`.
        weights: one per function: TRL's `reward_weights`; None: 1 each.
        concurrency, attempts: of `async` functions and requests, see FunctionReward and RemoteReward.
        url, key_env: a server that answers requests with scores, see RemoteReward.
        aggregation: for a process reward model, see ProcessReward; None: `min` for such a model.
        step_separator: a function's lists have one number per step, and this text is between steps.

    Raises:
        UserError: none or more than one is given, or `standardize` for anything but a reward model.
    """
    given: dict[str, Any] = {"function": function, "model": model, "components": components, "judge": judge}
    given["standardize"] = standardize
    given |= {"models": models, "combine": combine, "std_coef": std_coef, "normalize_parts": normalize_parts}
    given |= {"aggregation": aggregation, "step_separator": step_separator}
    given |= {"dtype": dtype, "attn_implementation": attn_implementation, "timeout": timeout}
    given |= {"functions": functions, "weights": weights, "arguments": arguments}
    given |= {"concurrency": concurrency, "attempts": attempts, "url": url, "key_env": key_env}
    check_reward(given, key_beside("", "reward."))
    calls: dict[str, Any] = {"timeout": timeout, "timeout_key": key_beside("timeout", "reward.")}
    calls |= {"concurrency": concurrency, "attempts": attempts}
    if model:
        return _of_model(model, batch_size, standardize, dtype, attn_implementation, aggregation)
    if models:
        loading = (batch_size, standardize, dtype, attn_implementation, aggregation)
        return _ensemble(models, combine, std_coef, loading)
    if judge:
        return JudgeReward(judge)
    if url:
        return RemoteReward(url, batch_size, timeout, concurrency, attempts, key_env)
    if function:
        made = _in_steps(FunctionReward(function, arguments=arguments, **calls), step_separator)
    elif functions:
        made = _sum_of_functions(functions, weights, normalize_parts, calls)
    else:
        assert components is not None
        made = _sum_of_parts(components, batch_size, normalize_parts, calls)
    check_calls(
        any(map(_waits, made.rewards.values() if isinstance(made, WeightedSum) else [made])),
        {"concurrency": concurrency, "attempts": attempts},
        key_beside("", "reward."),
    )
    return made


def _waits(reward: RewardFunction) -> bool:
    called = reward.reward if isinstance(reward, StepwiseReward) else reward
    return isinstance(called, RemoteReward) or (isinstance(called, FunctionReward) and called.call.waits)


def _in_steps(reward: FunctionReward, separator: str | None) -> Reward:
    return reward if separator is None else StepwiseReward(reward, separator)


def _sum_of_functions(
    functions: Sequence[str], weights: Sequence[float] | None, normalize: bool, calls: Mapping[str, Any]
) -> WeightedSum:
    key = key_beside("functions", "reward.")
    paths = dict(zip(part_names(functions), functions, strict=True))
    made = {name: FunctionReward(path, f"{key}[{i}]", **calls) for i, (name, path) in enumerate(paths.items())}
    return WeightedSum(made, dict(zip(made, weights or [1.0] * len(made), strict=True)), normalize, key)


def _sum_of_parts(
    components: Mapping[str, RewardPart], batch_size: int, normalize: bool, calls: Mapping[str, Any]
) -> WeightedSum:
    weights = {name: float(part.get("weight", 1.0)) for name, part in components.items()}
    parts: dict[str, RewardFunction] = {}
    for name, part in components.items():
        with named_as(f"{key_beside('components', 'reward.')}.{name}.model"):
            settings: dict[str, Any] = {key: value for key, value in part.items() if key != "weight"}
            if function := settings.get("function"):
                check_reward(settings, key_beside("", "reward."))
                called = FunctionReward(function, arguments=settings.get("arguments"), **calls)
                parts[name] = _in_steps(called, settings.get("step_separator"))
            elif url := settings.get("url"):
                check_reward(settings, key_beside("", "reward."))
                own = {key: calls[key] for key in ("timeout", "concurrency", "attempts")}
                parts[name] = RemoteReward(url, batch_size, key_env=settings.get("key_env"), **own)
            else:
                parts[name] = make_reward(**settings, batch_size=batch_size)
    return WeightedSum(parts, weights, normalize)


def _ensemble(models: list[Text], combine: Combine, std_coef: float, settings: tuple[Any, ...]) -> Ensemble:
    key, beside = key_beside("models", "reward."), key_beside("", "reward.")
    members = []
    for number, path in enumerate(models):
        with named_as(f"{key}.{number}", beside):
            members.append(_of_model(path, *settings))
    check_one_kind({path: isinstance(member, ProcessReward) for path, member in zip(models, members, strict=True)}, key)
    return Ensemble(members, combine, std_coef, key)


def _of_model(
    path: Text,
    batch_size: int,
    standardize: bool,
    dtype: Dtype,
    attn_implementation: Attention | None,
    aggregation: Aggregation | None,
) -> ModelReward:
    with named_as(named("reward.model"), key_beside("", "reward.")):
        process = separator_of(path) is not None
    if standardize and process:
        raise UserError(
            f"{key_beside('standardize', 'reward.')}=true: {path} scores steps by probabilities, which have no moments "
            "of their own; set it to false"
        )
    if process or aggregation is not None:
        return ProcessReward(path, batch_size, aggregation or "min", dtype, attn_implementation)
    return ModelReward(path, batch_size, standardize, dtype, attn_implementation)
