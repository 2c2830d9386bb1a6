"""The roles of RLHF: a policy with its value function, and the reference it is compared with."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Collection, Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from rlhf_lightning.errors import UserError, named
from rlhf_lightning.functional._arguments import at_least_float32
from rlhf_lightning.models.adapters import (
    adapter_active,
    adapters_add_nothing,
    can_be_switched,
    copy_adapter,
    has_adapter,
    load_beside,
)
from rlhf_lightning.models.forward import (
    hidden_width,
    last_hidden,
    predict_tokens,
    right_padded,
    scatter_tokens,
    states_before,
)
from rlhf_lightning.models.loaded_weights import HEAD, NO_HEAD
from rlhf_lightning.models.loading import disable_dropout, freeze
from rlhf_lightning.models.precision import KeepsTypes, match_types, without_autocast
from rlhf_lightning.models.remembered_hash import RememberedHash
from rlhf_lightning.models.value_head import ValueHead

Layout = Literal["shared", "separate"]


class ActorCriticOutput(NamedTuple):
    """Per response token [B, T]; 0 outside the mask."""

    logprobs: Tensor
    values: Tensor | None
    entropy: Tensor | None
    cost_values: Tensor | None = None


class ActorCritic(KeepsTypes):
    """A policy and its value functions over response tokens: of the reward, and of a cost.

    Layout `shared`: the value head reads the policy's hidden states, one trunk for both. Layout `separate`: the critic
    is a separate model. The value at token t is V(prompt, response[:t]): of the state that the token is sampled from.
    Without `with_values` there is no value of the reward, and without `with_costs` none of a cost.
    """

    def __init__(
        self,
        policy: nn.Module,
        critic: nn.Module | None = None,
        with_values: bool = True,
        cost_critic: nn.Module | None = None,
        with_costs: bool = False,
    ) -> None:
        super().__init__()
        self.policy = policy
        self.critic, self.cost_critic = critic, cost_critic
        for model in self.networks():
            disable_dropout(model)
        self.value_head = ValueHead(hidden_width(critic or policy)) if with_values else None
        self.cost_value_head = ValueHead(hidden_width(cost_critic or policy)) if with_costs else None

    @classmethod
    def of_roles(
        cls, policy: nn.Module, roles: Collection[str], make_critic: Callable[[], nn.Module] | None
    ) -> ActorCritic:
        """Return the policy with the critics that an algorithm's roles name; None: heads on the policy's states."""
        values, costs = "critic" in roles, "cost_critic" in roles
        critic, cost_critic = (make_critic() if make_critic and named else None for named in (values, costs))
        return cls(policy, critic, values, cost_critic, costs)

    def forward(
        self,
        prompt_ids: Tensor,
        prompt_mask: Tensor,
        response_ids: Tensor,
        mask: Tensor,
        temperature: float = 1.0,
        with_entropy: bool = False,
        allowed: Tensor | None = None,
    ) -> ActorCriticOutput:
        """Return log-probabilities and entropies (nats, of the tempered policy) and values of the response tokens.

        `allowed` [B, T, ceil(V / 8)] are the tokens over which the policy is renormalised, as bits; None: all.
        """
        ids, flags = right_padded(prompt_ids, prompt_mask, response_ids, mask)
        bits = None if allowed is None else allowed[mask.bool()]
        tokens = predict_tokens(self.policy, ids, flags, temperature, with_entropy, bits)
        entropy = scatter_tokens(tokens.entropy, mask) if tokens.entropy is not None else None
        values, costs = (
            None
            if head is None
            else scatter_tokens(head(tokens.hidden if critic is None else states_before(critic, ids, flags)), mask)
            for head, critic in ((self.value_head, self.critic), (self.cost_value_head, self.cost_critic))
        )
        return ActorCriticOutput(scatter_tokens(tokens.logprobs, mask), values, entropy, costs)

    def networks(self) -> list[nn.Module]:
        """Return the policy and the critics that are separate networks."""
        return [network for network in (self.policy, self.critic, self.cost_critic) if network is not None]

    def values(self, prompt_ids: Tensor, prompt_mask: Tensor, response_ids: Tensor, mask: Tensor) -> Tensor | None:
        """Return only the values [B, T], 0 outside the mask; None without a value head."""
        return self._only(self.value_head, self.critic, (prompt_ids, prompt_mask, response_ids, mask))

    def cost_values(self, prompt_ids: Tensor, prompt_mask: Tensor, response_ids: Tensor, mask: Tensor) -> Tensor | None:
        """Return only the values of the cost [B, T], 0 outside the mask; None without a head for it."""
        return self._only(self.cost_value_head, self.cost_critic, (prompt_ids, prompt_mask, response_ids, mask))

    def _only(
        self, head: nn.Module | None, critic: nn.Module | None, tokens: tuple[Tensor, Tensor, Tensor, Tensor]
    ) -> Tensor | None:
        if head is None:
            return None
        ids, flags = right_padded(*tokens)
        hidden = states_before(self.policy if critic is None else critic, ids, flags)
        return scatter_tokens(head(hidden), tokens[-1])


REFERENCE = "reference"  # the adapter that holds a trained starting policy
REWARD = "reward"  # the adapter of the reward model; further ones: reward_1, reward_2, ...


class Reference:
    """The policy before training.

    For a policy with an adapter it costs next to nothing: the adapter switched off if it is still zero, and otherwise
    (a policy that starts from an SFT adapter differs from its base) a frozen copy of that adapter. It is a frozen copy
    of the whole network for a policy without an adapter, for an adapter that trains more than LoRA's matrices, or if
    `share` is False.

    It is not an nn.Module, so that a frozen copy is neither a parameter of the run nor part of its checkpoints; it is
    loaded again from its source, and `fingerprint` tells whether it is still the same.
    """

    def __init__(self, policy: nn.Module, load_copy: Callable[[], nn.Module], share: bool = True) -> None:
        self.shared = share and has_adapter(policy) and can_be_switched(policy)
        self.adapters_off = self.shared and adapters_add_nothing(policy)
        self._policy, self._model = policy, policy if self.shared else freeze(load_copy())
        if self.shared and not self.adapters_off:
            copy_adapter(policy, REFERENCE)
        self._hash = RememberedHash()

    @contextlib.contextmanager
    def model(self, like: Tensor) -> Iterator[nn.Module]:
        """Yield the reference network, on the device of `like`."""
        if self.shared:
            switched = self._model.disable_adapter() if self.adapters_off else adapter_active(self._model, REFERENCE)  # type: ignore[operator]
            with switched:
                yield self._model
        else:
            match_types(self._model, self._policy)  # else the first KL would be the difference of two roundings
            if next(self._model.parameters()).device != like.device:
                self._model.to(like.device)
            yield self._model

    def fingerprint(self) -> str:
        """Return the hash of the reference's weights; it must never change, within a run or across a resume."""
        if not self.shared:
            match_types(self._model, self._policy)  # with the dtypes it is used with
            return self._hash.of(self._model)
        frozen = nn.ParameterDict(
            {
                name.replace(".", "/"): p
                for name, p in self._model.named_parameters()
                if not p.requires_grad and not any(f".{each}." in name for each in _reward_adapters(self._model))
            }
        )
        return self._hash.of(frozen)


def _reward_adapters(policy: Any) -> list[str]:
    """Return the names of the adapters on a policy that are reward models."""
    return [name for name in policy.peft_config if re.fullmatch(rf"{REWARD}(_\d+)?", name)]


class SharedRewardModel:
    """A reward model as an adapter and a score head on the policy's base: r = w h at the last valid token.

    Args:
        policy: a model with an adapter.
        folder: adapter folder of a reward model that was trained on the same base.
    """

    def __init__(self, policy: nn.Module, folder: str) -> None:
        count = len(_reward_adapters(policy))
        self.name = f"{REWARD}_{count}" if count else REWARD
        heads = [weight for name, weight in load_beside(policy, folder, self.name).items() if f".{HEAD}." in name]
        if len(heads) != 1:
            raise UserError(f"{named('reward.model')}: {folder} {NO_HEAD}")
        if heads[0].shape[0] != 1:
            found = f"{folder} has {heads[0].shape[0]} labels; a reward model has exactly one"
            raise UserError(f"{named('reward.model')}: {found}")
        self.policy, self.head = policy, heads[0]

    def __call__(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return scores [B] of right-padded rows [B, L]."""
        with adapter_active(self.policy, self.name):
            hidden = last_hidden(self.policy, input_ids, attention_mask)
        hidden = at_least_float32(hidden)
        with without_autocast(hidden.device):
            return (hidden @ self.head.to(hidden).T).squeeze(-1)

    @property
    def device(self) -> torch.device:
        """Return the policy's device."""
        return next(self.policy.parameters()).device
