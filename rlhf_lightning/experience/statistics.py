"""The metrics of a rollout (docs/metrics.md defines each name)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_lightning.data import PromptRow, response_texts
from rlhf_lightning.experience.groups import group_statistics
from rlhf_lightning.functional import kl_estimate, masked_var
from rlhf_lightning.rewards.protocol import Score
from rlhf_lightning.rollout import Rollout, token_rows
from rlhf_lightning.training.recording import Statistics

ROLLOUT_METRICS = (
    *("kl/coef", "objective/scores", "objective/kl", "objective/entropy", "objective/rlhf_reward"),
    *("objective/length_penalty", "objective/overlong_penalty"),
    *("policy/loss", "policy/approx_kl", "policy/clip_fraction", "policy/ratio_mean", "policy/ratio_max"),
    *("rollout/response_length", "rollout/eos_rate", "rollout/tokens_per_second", "rollout/logprob_gap"),
    *("rollout/logprob_gap_max", "rollout/importance_weight", "rollout/importance_capped"),
    *("rollout/group_spread", "rollout/group_std", "reward/disagreement"),
    *("val/scores", "val/kl", "val/response_length"),
)


def response_kl(rollout: Rollout) -> Tensor:
    """Return the sampled KL of every response, [B]: the sum over its tokens of log pi - log pi_ref, in nats."""
    return (kl_estimate(rollout.logprobs, rollout.ref_logprobs) * rollout.mask).sum(dim=1)


def explained_variance(returns: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Return 1 - Var(returns - values) / Var(returns) over the valid tokens of [B, T]: 1 is perfect, 0 a constant."""
    return 1 - masked_var(returns - values, mask) / masked_var(returns, mask).clamp(min=1e-8)


def critic_statistics(rollout: Rollout, everywhere: Callable[[Tensor], Tensor]) -> Statistics:
    """Return how well the values explain the returns; `everywhere` returns the rows [B, T] of all processes."""
    if rollout.values is None or rollout.returns is None:
        return {}
    explained = explained_variance(*(everywhere(x) for x in (rollout.returns, rollout.values, rollout.mask)))
    return {"value/explained_variance": (explained, 1.0)}


def rollout_statistics(
    rollout: Rollout, raw: Tensor, kl_coef: float, parts: Mapping[str, Sequence[Score]]
) -> Statistics:
    """Return the metrics of an iteration's responses.

    Args:
        rollout: the responses of this process.
        raw: [B], their unshaped scores.
        kl_coef: the KL coefficient, score per nat.
        parts: the scores of each part of a reward that is a sum; None where it does not apply.
    """
    mask, n, kl = rollout.mask, len(rollout), response_kl(rollout)
    per_response = {
        "objective/kl": kl,
        "objective/entropy": -(rollout.logprobs * mask).sum(dim=1),
        "objective/scores": raw,
        "objective/rlhf_reward": rollout.scores - kl_coef * kl,
        "rollout/response_length": mask.sum(dim=1),
        "rollout/eos_rate": rollout.ended.float(),
    }
    found: Statistics = {name: (value.mean(), n) for name, value in per_response.items()} | {"kl/coef": (kl_coef, 1.0)}
    return found | {f"objective/scores/{name}": part_mean(part) for name, part in parts.items()}


def part_mean(part: Sequence[Score]) -> tuple[float, float]:
    """Return the mean of a part's scores, and the number of responses that it applies to."""
    scores = [score for score in part if score is not None]
    return sum(scores) / max(1, len(scores)), float(len(scores))


def iteration_statistics(
    rollout: Rollout,
    raw: Tensor,
    kl_coef: float,
    parts: Mapping[str, Sequence[Score]],
    group_size: int,
    everywhere: Callable[[Tensor], Tensor],
) -> Statistics:
    """Return the metrics of an iteration's responses, of their groups, and of the critic; arguments as for each."""
    found = rollout_statistics(rollout, raw, kl_coef, parts) | group_statistics(raw, group_size)
    return found | critic_statistics(rollout, everywhere)


def held_out_statistics(rollout: Rollout, raw: Tensor, parts: Mapping[str, Sequence[Score]]) -> Statistics:
    """Return the metrics of responses to held-out prompts; arguments as for `rollout_statistics`."""
    n = len(rollout)
    per_response = {
        "val/scores": raw,
        "val/kl": response_kl(rollout),
        "val/response_length": rollout.mask.sum(dim=1),
    }
    of_parts: Statistics = {f"val/scores/{name}": part_mean(part) for name, part in parts.items()}
    return {name: (value.mean(), n) for name, value in per_response.items()} | of_parts


def time_statistics(seconds: Mapping[str, float]) -> Statistics:
    """Return the time of each phase of the iteration, and its share of all time since the previous iteration ended."""
    whole = sum(seconds.values())
    found: Statistics = {}
    for phase in ("rollout", "score", "update"):
        found[f"time/{phase}"] = seconds[phase], 1.0
        found[f"time/share_{phase}"] = seconds[phase] / whole, whole
    return found


def samples(
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[PromptRow],
    rollout: Rollout,
    raw: Tensor,
    extras: Mapping[str, Sequence[Any]],
    limit: int = 16,
) -> list[dict[str, Any]]:
    """Return the first responses as text, with score and KL (nats per response), for the sample table.

    `extras` has further columns for the responses, under `extra`.
    """
    asked, responses = (
        [row.input_ids for row in prompts[:limit]],
        token_rows(rollout.response_ids, rollout.mask)[:limit],
    )
    ended, scores, kls = torch.stack([rollout.ended.float(), raw, response_kl(rollout)])[:, :limit].tolist()
    texts = response_texts(tokenizer, asked, responses, [bool(end) for end in ended])
    return [
        {"prompt": row.text, "response": text, "score": round(score, 4), "kl": round(kl, 4)}
        | ({"extra": {name: column[i] for name, column in extras.items()}} if extras else {})
        for i, (row, text, score, kl) in enumerate(zip(prompts[:limit], texts, scores, kls, strict=True))
    ]
