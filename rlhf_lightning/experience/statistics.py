"""What is logged of a rollout (docs/metrics.md defines each name)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_lightning.data import PromptRow, response_texts
from rlhf_lightning.functional import kl_estimate, masked_var
from rlhf_lightning.rollout import Rollout, token_rows


def response_kl(rollout: Rollout) -> Tensor:
    """Sampled KL to the reference of every response [B]: the sum over its tokens of log pi - log pi_ref, in nats."""
    return (kl_estimate(rollout.logprobs, rollout.ref_logprobs) * rollout.mask).sum(dim=1)


def explained_variance(returns: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """1 - Var(returns - values) / Var(returns) over the valid tokens of [B, T]: 1 is perfect, 0 a constant."""
    return 1 - masked_var(returns - values, mask) / masked_var(returns, mask).clamp(min=1e-8)


def record_rollout(module: Any, rollout: Rollout, raw: Tensor, seconds: float) -> None:
    """Record the iteration's statistics on the module; `seconds` is the time generation took."""
    mask, n = rollout.mask, len(rollout)
    kl, tokens = response_kl(rollout), mask.sum()
    everywhere = [module.gather_tokens(x) for x in (rollout.returns, rollout.values, mask)]
    per_response = {
        "objective/kl": kl,
        "objective/entropy": -(rollout.logprobs * mask).sum(dim=1),
        "objective/scores": raw,
        "objective/rlhf_reward": rollout.scores - module.kl_controller.value * kl,
        "rollout/response_length": mask.sum(dim=1),
        "rollout/eos_rate": rollout.ended.float(),
    }
    for name, value in per_response.items():
        module.record(name, value.mean(), n)
    for name, part in getattr(module.reward, "parts", {}).items():
        module.record(f"objective/scores/{name}", sum(part) / n, n)
    module.record("value/explained_variance", explained_variance(*everywhere))
    module.record("rollout/tokens_per_second", tokens / seconds)


def record_losses(module: Any, stats: dict[str, Tensor], tokens: Tensor) -> None:
    """Record what the loss returns of a micro-batch: means over its tokens, and the largest ratio."""
    for name, value in stats.items():
        if name == "policy/ratio_max":
            module.record_max(name, value)
        else:
            module.record(name, value, tokens)


def record_times(module: Any, seconds: dict[str, float]) -> None:
    """Record the phases of the iteration, and their shares of all the time since the iteration before ended."""
    whole = sum(seconds.values())
    for phase in ("rollout", "score", "update"):
        module.record(f"time/{phase}", seconds[phase])
        module.record(f"time/share_{phase}", seconds[phase] / whole, whole)


def samples(
    tokenizer: PreTrainedTokenizerBase, prompts: list[PromptRow], rollout: Rollout, raw: Tensor, limit: int = 16
) -> list[dict[str, Any]]:
    """The first responses as text, with score and KL (nats per response), for the sample table."""
    asked, responses = (
        [row.input_ids for row in prompts[:limit]],
        token_rows(rollout.response_ids, rollout.mask)[:limit],
    )
    ended, scores, kls = torch.stack([rollout.ended.float(), raw, response_kl(rollout)])[:, :limit].tolist()
    texts = response_texts(tokenizer, asked, responses, [bool(end) for end in ended])
    return [
        {"prompt": row.text, "response": text, "score": round(score, 4), "kl": round(kl, 4)}
        for row, text, score, kl in zip(prompts[:limit], texts, scores, kls, strict=True)
    ]
