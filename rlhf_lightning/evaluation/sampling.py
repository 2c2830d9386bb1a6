"""Sampling one policy's responses to held-out prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_lightning.data import PromptRow, left_pad, response_texts
from rlhf_lightning.evaluation.best_of_n import best_places
from rlhf_lightning.evaluation.divergence import response_kl
from rlhf_lightning.functional import best_of_n_kl
from rlhf_lightning.models import end_of_sequence_ids, response_logprobs
from rlhf_lightning.models.limits import check_positions, check_tokens
from rlhf_lightning.models.transfer import to_device
from rlhf_lightning.rewards import RewardFunction, score_samples
from rlhf_lightning.rollout import NativeEngine, SamplingSettings, seeded_generator

MOST_AT_ONCE = 1024  # number of responses that a reward scores at a time


@dataclass(frozen=True)
class SampledResponse:
    """One sampled response.

    It has the text (as a reward receives it in PPO), its tokens (including EOS) and their number, whether EOS ended it,
    and the KL estimate against the reference in nats (None without a reference).
    """

    text: str
    length: int
    ended: bool
    kl: float | None
    tokens: list[int]


@dataclass(frozen=True)
class BestOf:
    """Best-of-n: of n samples for each prompt, the first of those with the highest score is the response."""

    n: int
    reward: RewardFunction

    def name(self, policy: str) -> str:
        """Return what a policy is called that answers with the best of its samples."""
        return f"{policy}_best_of_{self.n}"

    def choose(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[PromptRow],
        responses: Sequence[list[int]],
        ended: Sequence[bool],
    ) -> list[int]:
        """Return the place of the best of each n neighbouring samples.

        Raises:
            UserError: the reward does not return exactly one finite number per response.
        """
        scores: list[float] = []
        for start in range(0, len(prompts), MOST_AT_ONCE):
            part = slice(start, start + MOST_AT_ONCE)
            scores += score_samples(self.reward, tokenizer, prompts[part], responses[part], ended[part], "reward")
        return best_places(scores, self.n)

    def bounded(self, metrics: dict[str, float]) -> dict[str, float]:
        """Return a policy's metrics with `kl_bound` in place of a KL of samples that were not chosen.

        KL(best of n || reference) = KL(best of n || pi) + E_chosen[log pi - log reference], and the first term is at
        most log n - (n - 1) / n; the second is the mean over the chosen samples.
        """
        bound = {"kl_bound": metrics["kl"] + best_of_n_kl(self.n)} if "kl" in metrics else {}
        return {name: value for name, value in metrics.items() if name not in ("kl", "kl_per_token")} | bound


@torch.no_grad()
def sample_responses(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[PromptRow],
    settings: SamplingSettings,
    *,
    batch_size: int,
    seed: int,
    reference: PreTrainedModel | None = None,
    best: BestOf | None = None,
) -> list[SampledResponse]:
    """Return one response per prompt, in order; with `best`, the best of several.

    The draws depend only on `seed`, the prompts and `batch_size`, so two equal policies give equal answers. The KL
    scores policy and reference with the same forward pass, not with the log-probabilities kept while decoding: a policy
    against itself then has a KL of exactly 0.
    """
    device = next(model.parameters()).device
    eos_ids = end_of_sequence_ids(model, tokenizer)
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else eos_ids[0]
    check_tokens(model, tokenizer, [pad_id, *(token for row in prompts for token in row.input_ids)], "policies")
    longest = max(len(row.input_ids) for row in prompts)
    check_positions(
        model,
        longest + settings.max_new_tokens,
        f"max_new_tokens: found {settings.max_new_tokens}, the longest prompt has {longest} tokens",
        "both together must be at most {limit}",
    )
    engine = NativeEngine(pad_id, eos_ids, batch_size)
    engine.sync(model)
    asked = [row for row in prompts for _ in range(best.n if best is not None else 1)]
    generator = seeded_generator(device, "evaluation", seed)
    generation = engine.generate([list(row.input_ids) for row in asked], settings, generator)
    if best is not None:
        generation = generation.select(best.choose(tokenizer, asked, generation.responses(), generation.ended.tolist()))
    ids = [list(row.input_ids) for row in prompts]
    kl: list[float | None] = [None] * len(ids)
    if reference is not None:
        kl = []
        for start in range(0, len(ids), batch_size):
            part = slice(start, start + batch_size)
            prompt_ids, prompt_mask = (to_device(x, device) for x in left_pad(ids[part], pad_id))
            inputs = (prompt_ids, prompt_mask, generation.tokens[part], generation.mask[part])
            logprobs, ref_logprobs = (
                response_logprobs(role, *inputs, temperature=settings.temperature) for role in (model, reference)
            )
            kl += response_kl(logprobs, ref_logprobs, generation.mask[part]).tolist()
    tokens, ended = generation.responses(), generation.ended.tolist()
    texts, lengths = response_texts(tokenizer, ids, tokens, ended), map(len, tokens)
    return [SampledResponse(*response) for response in zip(texts, lengths, ended, kl, tokens, strict=True)]
