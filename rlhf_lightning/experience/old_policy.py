"""What PPO's updates start from: log-probabilities and values under the policy that sampled, and the reference's.

The policy's are computed again, or kept from the engine. Both are of the same weights, in kernels of their own: they
differ by rounding (1e-6 in float32), where those of the trainer are to the bit what the reference computes from the
same weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rlhf_lightning.data import PromptRow, left_pad
from rlhf_lightning.errors import UserError
from rlhf_lightning.models import ActorCritic, response_logprobs
from rlhf_lightning.models.transfer import to_device
from rlhf_lightning.rollout import Generation, NativeEngine, Rollout, RolloutEngine, rows_by_tokens


def keep_from_engine(engine: RolloutEngine, actor_critic: ActorCritic) -> None:
    """Let the engine keep what PPO needs of its policy: the values too, if their head reads the policy's states.

    Raises:
        UserError: an engine with kernels or weights of its own.
    """
    if not isinstance(engine, NativeEngine):
        raise UserError(
            f"algorithm.old_logprobs: found engine, but {type(engine).__name__} does not compute as the trainer does; "
            "choose rollout=native, or algorithm.old_logprobs=trainer"
        )
    engine.value_head = actor_critic.value_head if actor_critic.critic is None else None


def evaluate_tokens(module: Any, prompts: list[PromptRow], generation: Generation) -> Rollout:
    """Log-probabilities of policy and reference, and values, in parts as large as the update's."""
    assert module.reference is not None
    prompt_ids, prompt_mask = (
        to_device(x, module.device) for x in left_pad([row.input_ids for row in prompts], module.tokenizer.pad_token_id)
    )
    parts = _parts(module, (prompt_mask.sum(dim=1) + generation.mask.sum(dim=1)).long())
    back = torch.cat(parts).argsort()
    policy, reference = [], []
    for part in parts:
        tokens = (prompt_ids[part], prompt_mask[part], generation.tokens[part], generation.mask[part])
        policy.append(_old_policy(module, tokens, generation, part))
        with module.reference.model(like=prompt_ids) as model:
            reference.append(response_logprobs(model, *tokens, temperature=module.rollout.temperature))
    logprobs, values = (torch.cat(of_parts)[back] for of_parts in zip(*policy, strict=True))
    empty = torch.empty_like(logprobs)
    return Rollout(
        prompt_ids,
        prompt_mask,
        generation.tokens,
        generation.mask,
        generation.ended,
        logprobs=logprobs,
        ref_logprobs=torch.cat(reference)[back],
        values=values,
        scores=torch.zeros(len(prompts), dtype=torch.float32, device=module.device),
        rewards=empty,
        advantages=empty,
        returns=empty,
    )


def _parts(module: Any, lengths: Tensor) -> list[Tensor]:
    """Rows of a rollout to compute at a time."""
    if module.tokens_per_microbatch is not None:
        return rows_by_tokens(lengths, module.tokens_per_microbatch)
    rows = torch.arange(len(lengths), device=lengths.device)
    return list(rows.chunk(module.num_minibatches * module.trainer.accumulate_grad_batches))


def _old_policy(
    module: Any, tokens: tuple[Tensor, Tensor, Tensor, Tensor], generation: Generation, rows: Tensor
) -> tuple[Tensor, Tensor]:
    """Log-probabilities and values [B, T] of these rows' tokens, under the policy that sampled them."""
    assert module.actor_critic is not None
    if module.old_logprobs == "trainer":
        out = module.actor_critic(*tokens, temperature=module.rollout.temperature)
        return out.logprobs, out.values
    kept = generation.values
    return generation.logprobs[rows], module.actor_critic.values(*tokens) if kept is None else kept[rows]
