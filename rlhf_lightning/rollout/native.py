"""The engine that needs nothing but the policy itself: batched sampling over a key-value cache."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from rlhf_lightning.data import left_pad
from rlhf_lightning.models.forward import bare_model, output_head
from rlhf_lightning.rollout.engine import Generation, SamplingSettings

# Leave finished rows out of the batch once they are this share of it: copying the cache costs about one step.
COMPACT_AT = 0.25


class NativeEngine:
    """Sample with the trainer's own weights; prompts are padded on the left and positions restart at each prompt.

    Every step keeps the chosen tokens and their log-probabilities, never the [B, T, V] logits. Rows that have ended
    leave the batch, and decoding stops when all have.
    """

    def __init__(self, pad_id: int, eos_ids: Sequence[int], batch_size: int | None = None) -> None:
        self.pad_id = pad_id
        self.eos_ids = torch.tensor(sorted(set(eos_ids)))
        self.batch_size = batch_size
        self.model: nn.Module | None = None

    def sync(self, model: nn.Module) -> None:
        """Keep a reference to the policy: its weights are always current."""
        self.model = model

    @torch.no_grad()
    def generate(
        self, prompts: list[list[int]], settings: SamplingSettings, generator: torch.Generator | None = None
    ) -> Generation:
        """One response a prompt, in the order of the prompts."""
        assert self.model is not None, "call sync(model) first"
        size = self.batch_size or len(prompts)
        with _evaluating(self.model) as model:
            parts = [
                _decode(model, prompts[i : i + size], self.pad_id, self.eos_ids, settings, generator)
                for i in range(0, len(prompts), size)
            ]
        length = max(part[0].shape[1] for part in parts)
        tokens, mask, logprobs = (
            torch.cat([_widen(part[k], length, pad) for part in parts]) for k, pad in enumerate((self.pad_id, 0.0, 0.0))
        )
        ended = (torch.isin(tokens, self.eos_ids.to(tokens.device)) & mask.bool()).any(dim=1)
        return Generation(tokens, mask, logprobs, ended)


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Without dropout, and with a cache: activation checkpointing throws it away in training mode."""
    training = model.training
    try:
        yield model.eval()
    finally:
        model.train(training)


def _widen(x: Tensor, length: int, value: float) -> Tensor:
    return nn.functional.pad(x, (0, length - x.shape[1]), value=value)


def _decode(
    model: nn.Module,
    prompts: list[list[int]],
    pad_id: int,
    eos_ids: Tensor,
    settings: SamplingSettings,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens [B, T], mask [B, T] and log-probabilities [B, T] of one batch."""
    bare, head = bare_model(model), output_head(model)
    device = next(bare.parameters()).device
    ids, attention = (x.to(device) for x in left_pad(prompts, pad_id))
    eos_ids = eos_ids.to(device)
    rows, steps = ids.shape[0], settings.max_new_tokens
    tokens = torch.full((rows, steps), pad_id, dtype=torch.long, device=device)
    mask = torch.zeros(rows, steps, device=device)
    logprobs = torch.zeros(rows, steps, device=device)

    cache = DynamicCache(config=bare.config.get_text_config())
    positions = (attention.cumsum(dim=1) - 1).clamp(min=0)
    active = torch.arange(rows, device=device)  # the row of the result that each row of the batch writes to
    done = torch.zeros(rows, dtype=torch.bool, device=device)
    step = 0
    for step in range(steps):
        out = bare.base_model(
            input_ids=ids, attention_mask=attention, position_ids=positions, past_key_values=cache, use_cache=True
        )
        chosen, logprob = sample(head(out.last_hidden_state[:, -1]).float(), settings, generator)
        live = ~done
        tokens[active[live], step], logprobs[active[live], step] = chosen[live], logprob[live]
        mask[active[live], step] = 1.0
        done = done | torch.isin(chosen, eos_ids)
        finished = int(done.sum())
        if finished == len(done):
            break
        if finished >= COMPACT_AT * len(done):
            keep = (~done).nonzero().squeeze(1)
            cache.batch_select_indices(keep)
            chosen, attention, positions = chosen[keep], attention[keep], positions[keep]
            active, done = active[keep], done[keep]
        ids, positions = chosen.unsqueeze(1), positions[:, -1:] + 1
        attention = torch.cat([attention, attention.new_ones(len(attention), 1)], dim=1)
    return tokens[:, : step + 1], mask[:, : step + 1], logprobs[:, : step + 1]


def sample(logits: Tensor, settings: SamplingSettings, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Draw one token a row.

    With E exponential noise, argmax(logits / temperature - log E) is a draw from the softmax (the Gumbel-max trick):
    no second softmax and no sorted cumulative sums.

    Args:
        logits: [B, V] float32.

    Returns:
        token ids [B] and their log-probabilities [B] in nats under the tempered, unfiltered distribution.
    """
    if settings.temperature == 0.0:
        chosen = logits.argmax(dim=-1)
        return chosen, _chosen_logprob(logits, chosen)
    scaled = logits / settings.temperature
    noise = torch.empty_like(scaled).exponential_(generator=generator).clamp_(min=torch.finfo(scaled.dtype).tiny)
    chosen = (_filtered(scaled, settings) - noise.log_()).argmax(dim=-1)
    return chosen, _chosen_logprob(scaled, chosen)


def _chosen_logprob(logits: Tensor, chosen: Tensor) -> Tensor:
    return logits.gather(1, chosen.unsqueeze(1)).squeeze(1) - logits.logsumexp(dim=-1)


def _filtered(logits: Tensor, settings: SamplingSettings) -> Tensor:
    """Logits with everything outside top-k and outside the nucleus of mass top-p at minus infinity."""
    if settings.top_k > 0:
        kth = logits.topk(min(settings.top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if settings.top_p < 1.0:
        ordered, order = logits.sort(dim=-1, descending=True)
        before = ordered.softmax(dim=-1).cumsum(dim=-1) - ordered.softmax(dim=-1)
        outside = torch.zeros_like(logits, dtype=torch.bool).scatter(1, order, before >= settings.top_p)
        logits = logits.masked_fill(outside, -torch.inf)
    return logits
