"""What updates start from: log-probabilities and values under the sampling policy, and the reference's.

The policy's are either computed again or taken from the engine. Both use the same weights, but the engine's kernels
round differently (1e-6 in float32), whereas the trainer's results are bitwise those of a reference with the same
weights.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rlhf_lightning.data import PromptRow, left_pad
from rlhf_lightning.models import ActorCritic, Reference, response_logprobs
from rlhf_lightning.models.roles import ActorCriticOutput
from rlhf_lightning.models.transfer import to_device
from rlhf_lightning.rollout import Generation, Rollout, RolloutEngine, as_engine
from rlhf_lightning.setting_rules import engine_logprobs_differ

Tokens = tuple[Tensor, Tensor, Tensor, Tensor]


def keep_from_engine(engine: RolloutEngine, actor_critic: ActorCritic) -> None:
    """Let the engine keep its log-probabilities, and the values if their head reads the policy's hidden states.

    Raises:
        UserError: an engine with its own kernels or weights.
    """
    if not as_engine(engine).keep(actor_critic.value_head if actor_critic.critic is None else None):
        raise engine_logprobs_differ(type(engine).__name__)


class OldPolicy:
    """Turns generated responses into a rollout with the policy's and the reference's log-probabilities, and values.

    Args:
        actor_critic, reference: the networks.
        pad_id: the tokenizer's.
        temperature: the sampling temperature of the responses.
        from_engine: take the engine's log-probabilities (and values).
    """

    def __init__(
        self, actor_critic: ActorCritic, reference: Reference, pad_id: int, temperature: float, from_engine: bool
    ) -> None:
        self.actor_critic, self.reference = actor_critic, reference
        self.pad_id, self.temperature, self.from_engine = pad_id, temperature, from_engine

    def __call__(
        self, prompts: list[PromptRow], generation: Generation, split: Callable[[Tensor], list[Tensor]]
    ) -> Rollout:
        """Return the rollout; `split` decides which rows to compute together, given their lengths [B]."""
        device = generation.tokens.device
        prompt_ids, prompt_mask = (
            to_device(x, device) for x in left_pad([row.input_ids for row in prompts], self.pad_id)
        )
        parts = split((prompt_mask.sum(dim=1) + generation.mask.sum(dim=1)).long())
        back = torch.cat(parts).argsort()
        policy, values, costs, reference = [], [], [], []
        for part in parts:
            tokens = (prompt_ids[part], prompt_mask[part], generation.tokens[part], generation.mask[part])
            allowed = None if generation.allowed is None else generation.allowed[part]
            out = self._policy(tokens, generation, part, allowed)
            policy.append(out.logprobs)
            values += [] if out.values is None else [out.values]
            costs += [] if out.cost_values is None else [out.cost_values]
            with self.reference.model(like=prompt_ids) as model:
                reference.append(response_logprobs(model, *tokens, self.temperature, allowed))
        logprobs = torch.cat(policy)[back]
        empty = torch.empty_like(logprobs)
        rollout = Rollout(
            prompt_ids,
            prompt_mask,
            generation.tokens,
            generation.mask,
            generation.ended,
            logprobs=logprobs,
            ref_logprobs=torch.cat(reference)[back],
            values=torch.cat(values)[back] if values else None,
            scores=torch.zeros(len(prompts), dtype=torch.float32, device=device),
            rewards=empty,
            advantages=empty,
            returns=None,
        )
        rollout.cost_values = torch.cat(costs)[back] if costs else None
        rollout.allowed = generation.allowed
        return rollout

    def _policy(
        self, tokens: Tokens, generation: Generation, rows: Tensor, allowed: Tensor | None
    ) -> ActorCriticOutput:
        """Return log-probabilities and values [B, T] of these rows' tokens, under the sampling policy."""
        if not self.from_engine:
            out: ActorCriticOutput = self.actor_critic(*tokens, self.temperature, allowed=allowed)
            return out
        kept = generation.values
        values = self.actor_critic.values(*tokens) if kept is None else kept[rows]
        return ActorCriticOutput(generation.logprobs[rows], values, None, self.actor_critic.cost_values(*tokens))
