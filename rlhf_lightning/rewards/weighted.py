"""Several rewards as one, and the construction of a reward from plain settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from typing_extensions import TypedDict

from rlhf_lightning.errors import UserError, key_beside, named_as
from rlhf_lightning.judging.settings import JudgeSettings
from rlhf_lightning.models.loading import Dtype
from rlhf_lightning.rewards.ensemble import Combine, Ensemble
from rlhf_lightning.rewards.function import FunctionReward
from rlhf_lightning.rewards.judge import JudgeReward
from rlhf_lightning.rewards.model import ModelReward
from rlhf_lightning.rewards.protocol import Reward, RewardFunction, as_reward
from rlhf_lightning.rewards.samples import SampledTokens
from rlhf_lightning.rewards.scores import Scores, at_last_token, check_result, per_token, totals
from rlhf_lightning.setting_rules import check_reward
from rlhf_lightning.value_types import Attention, Count, Kernels, NonNegative, Number, Seconds, Text


class WeightedSum(Reward):
    """r = sum over i of w_i r_i. The parts of the last call remain available by name, for logging.

    Args:
        rewards: the parts, by name.
        weights: their weights, by the same names.
        normalize: in training, each part counts as (score - running mean) / running std, by its own moments over all
            responses so far; the result of a call, and what is logged, stay unnormalised.
    """

    reads_tokens = True

    def __init__(
        self, rewards: Mapping[str, RewardFunction], weights: Mapping[str, float], normalize: bool = False
    ) -> None:
        if set(rewards) != set(weights):
            raise UserError(f"reward.components: rewards {sorted(rewards)} and weights {sorted(weights)} differ")
        self.name, self.key = "+".join(rewards), "reward.components"
        self.rewards, self.weights = dict(rewards), dict(weights)
        self.parts: dict[str, list[float]] = {}
        self.results: dict[str, Scores] = {}
        self.normalize = normalize

    @property
    def normalized(self) -> dict[str, tuple[float, Scores]]:  # type: ignore[override]
        """Return weight and last scores of each part, if each is to be normalised."""
        return {name: (self.weights[name], result) for name, result in self.results.items()} if self.normalize else {}

    @property
    def figures(self) -> dict[str, list[float]]:  # type: ignore[override]
        """Return the parts' figures, by the names of figure and part."""
        parts = {name: as_reward(part).figures for name, part in self.rewards.items()}
        return {f"{figure}/{name}": found for name, part in parts.items() for figure, found in part.items()}

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
        results = {
            name: check_result(
                reward(prompts, responses, **(columns if as_reward(reward).reads_tokens else texts)),
                n,
                name,
                f"reward.components.{name}",
                lengths,
            )
            for name, reward in self.rewards.items()
        }
        self.results = results
        self.parts = {name: totals(result) for name, result in results.items()}
        return self._sum(results, n)

    def _sum(self, results: Mapping[str, Scores], n: int) -> Scores:
        """Return the weighted sum, per token if any part is; the others' scores are on the last token."""
        tokens = {name: result for name, result in results.items() if per_token(result)}
        if not tokens:
            return [sum(self.weights[name] * part[i] for name, part in self.parts.items()) for i in range(n)]
        first = next(iter(tokens.values()))
        for name, result in tokens.items():
            for i in range(n):
                if len(result[i]) != len(first[i]):
                    raise UserError(
                        f"reward.components.{name}: returned {len(result[i])} numbers for response {i}, and another "
                        f"part {len(first[i])}; return one for each of its tokens"
                    )
        placed = {name: at_last_token(result, first) for name, result in results.items()}
        return [
            [sum(self.weights[name] * part[i][t] for name, part in placed.items()) for t in range(len(first[i]))]
            for i in range(n)
        ]


class RewardPart(TypedDict, total=False):
    """One part of a weighted sum: a function, a model, several models or a judge, and its weight.

    Attributes:
        function: a Python function (prompts, responses, **columns) -> scores, by dotted path.
        model: a trained reward model: the run folder of a reward run, or a Hugging Face folder.
        models: several reward models, whose scores are combined.
        judge: a model that rates each response by principles.
        combine: how the scores of several models are combined.
        std_coef: k of combine=mean_minus_std.
        weight: of the part's score in the sum; default 1.
        standardize: true: (score - mean) / std, the moments of held-out scores that a reward model carries.
        dtype: of the reward model.
        attn_implementation: of the reward model; null: what the family has.
    """

    function: Text | None
    model: Text | None
    models: list[Text] | None
    judge: JudgeSettings | None
    combine: Combine
    std_coef: NonNegative
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
) -> RewardFunction:
    """Return the reward that the settings describe: exactly one function, model, list of models, sum or judge.

    Args:
        function: dotted path of a Python function (see RewardFunction).
        model: a reward model's run folder, Hugging Face folder or hub name.
        components: `{name: {function, model or judge, weight}}`, summed with their weights (1 if not given).
        judge: settings of a model that rates each response (see JudgeReward).
        batch_size: responses that a reward model scores at a time.
        standardize: for a reward model, see ModelReward. A component has its own setting.
        dtype, attn_implementation: for a reward model, see `load_causal_lm`. A component has its own settings.
        timeout: most seconds per call of a function; None: no limit.
        models: reward models, two or more, as for `model`; see Ensemble.
        combine, std_coef: how the scores of several models are combined, see Ensemble.
        normalize_parts: normalise each component by its own running moments before it is weighted, see WeightedSum.

    Raises:
        UserError: none or more than one is given, or `standardize` for anything but a reward model.
    """
    given: dict[str, Any] = {"function": function, "model": model, "components": components, "judge": judge}
    given["standardize"] = standardize
    given |= {"models": models, "combine": combine, "std_coef": std_coef, "normalize_parts": normalize_parts}
    given |= {"dtype": dtype, "attn_implementation": attn_implementation, "timeout": timeout}
    check_reward(given, key_beside("", "reward."))
    timeout_key = key_beside("timeout", "reward.")
    if function:
        return FunctionReward(function, timeout=timeout, timeout_key=timeout_key)
    if model:
        return ModelReward(model, batch_size, standardize, dtype, attn_implementation)
    if models:
        return _ensemble(models, combine, std_coef, (batch_size, standardize, dtype, attn_implementation))
    if judge:
        return JudgeReward(judge)
    assert components is not None
    weights = {name: float(part.get("weight", 1.0)) for name, part in components.items()}
    parts = {}
    for name, part in components.items():
        with named_as(f"{key_beside('components', 'reward.')}.{name}.model"):
            settings = {key: value for key, value in part.items() if key != "weight"}
            limit = timeout if part.get("function") else None
            parts[name] = _part(settings, batch_size, limit, timeout_key)
    return WeightedSum(parts, weights, normalize_parts)


def _ensemble(models: list[Text], combine: Combine, std_coef: float, settings: tuple[Any, ...]) -> Ensemble:
    key, beside = key_beside("models", "reward."), key_beside("", "reward.")
    members = []
    for number, path in enumerate(models):
        with named_as(f"{key}.{number}", beside):
            members.append(ModelReward(path, *settings))
    return Ensemble(members, combine, std_coef, key)


def _part(settings: Mapping[str, Any], batch_size: int, timeout: float | None, timeout_key: str) -> RewardFunction:
    reward = make_reward(**settings, batch_size=batch_size, timeout=timeout)
    if isinstance(reward, FunctionReward):
        reward.timeout_key = timeout_key  # of all parts together
    return reward
