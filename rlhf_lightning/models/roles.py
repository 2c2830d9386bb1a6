"""The roles of RLHF: a policy with its value function, and the reference it is held to."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

from torch import Tensor, nn

from rlhf_lightning.models.forward import bare_model, hidden_states, predict_tokens, right_padded, scatter_tokens
from rlhf_lightning.models.loading import disable_dropout, fingerprint, freeze
from rlhf_lightning.models.value_head import ValueHead

Layout = Literal["shared", "separate"]


class ActorCriticOutput(NamedTuple):
    """Per response token [B, T]; 0 off the mask."""

    logprobs: Tensor
    values: Tensor
    entropy: Tensor | None


class ActorCritic(nn.Module):
    """A policy and its value function over response tokens.

    Layout `shared`: the value head reads the policy's hidden states, one trunk for both. Layout `separate`: the critic
    is a model of its own. The value at token t is V(prompt, response[:t]): the state the token is drawn from.
    """

    def __init__(self, policy: nn.Module, critic: nn.Module | None = None) -> None:
        super().__init__()
        self.policy = policy
        self.critic = critic
        for model in (policy, critic):
            if model is not None:
                disable_dropout(model)
        self.value_head = ValueHead(bare_model(critic or policy).config.get_text_config().hidden_size)

    def forward(
        self,
        prompt_ids: Tensor,
        prompt_mask: Tensor,
        response_ids: Tensor,
        mask: Tensor,
        temperature: float = 1.0,
        with_entropy: bool = False,
    ) -> ActorCriticOutput:
        """Log-probabilities and entropies (nats, of the tempered policy) and values of the response tokens."""
        ids, flags = right_padded(prompt_ids, prompt_mask, response_ids, mask)
        tokens = predict_tokens(self.policy, ids, flags, temperature, with_entropy)
        hidden = tokens.hidden
        if self.critic is not None:
            hidden = hidden_states(self.critic, ids)[:, :-1][flags.bool()[:, 1:]]
        entropy = scatter_tokens(tokens.entropy, mask) if tokens.entropy is not None else None
        return ActorCriticOutput(
            scatter_tokens(tokens.logprobs, mask), scatter_tokens(self.value_head(hidden), mask), entropy
        )


def adapters_add_nothing(model: nn.Module) -> bool:
    """Whether every LoRA update B A is still zero, as a fresh one is: B starts at zero."""
    return not any(parameter.any() for name, parameter in model.named_parameters() if "lora_B" in name)


class Reference:
    """The policy before training: its adapters switched off if they still add nothing, a frozen copy otherwise.

    A policy that starts from an adapter trained before (SFT with LoRA) is not its base: off would be another model.

    It is no nn.Module, so that a frozen copy is neither a parameter of the run nor part of its checkpoints; it is
    loaded again from where it came from, and `fingerprint` tells whether it is still the same.
    """

    def __init__(self, policy: nn.Module, load_copy: Callable[[], nn.Module]) -> None:
        self.adapters_off = hasattr(policy, "disable_adapter") and adapters_add_nothing(policy)
        self._model = policy if self.adapters_off else freeze(load_copy())

    @contextlib.contextmanager
    def model(self, like: Tensor) -> Iterator[nn.Module]:
        """The reference network, on the device of `like`."""
        if self.adapters_off:
            with self._model.disable_adapter():  # type: ignore[operator]
                yield self._model
        else:
            if next(self._model.parameters()).device != like.device:
                self._model.to(like.device)
            yield self._model

    def fingerprint(self) -> str:
        """Hash of the reference's weights; it must never change, within a run or across a resume."""
        if not self.adapters_off:
            return fingerprint(self._model)
        frozen = nn.ParameterDict(
            {name.replace(".", "/"): p for name, p in self._model.named_parameters() if not p.requires_grad}
        )
        return fingerprint(frozen)
