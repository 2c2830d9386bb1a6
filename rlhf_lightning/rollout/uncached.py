"""Sampling without a cache, and the choice between that and the cache.

A cache is much faster, but not every family's past fits into one that this engine can feed: state spaces, decoders with
their own positions, sparse attention. Reading the whole row again for every token is right for every network whose
forward pass is right.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_lightning.models.forward import bare_model, hidden_states, output_head, predict_tokens
from rlhf_lightning.models.rounding import ROUNDINGS, TOLERANCE, noise_of, roundoff
from rlhf_lightning.models.self_check import ordinary_tokens, untouched
from rlhf_lightning.models.transfer import to_device
from rlhf_lightning.rollout.drawn import Drawn, Row
from rlhf_lightning.rollout.engine import SamplingSettings

log = logging.getLogger(__name__)

# The check's prompts: more than its slots, so that one is read into a slot that another row has left.
PROMPTS, SLOTS, NEW_TOKENS = (8, 5, 3), 2, 4


class UncachedDecoding:
    """The rows of one call of `generate`, each reread for every token. Arguments as for `native.Decoding`."""

    def __init__(
        self,
        model: nn.Module,
        rows: list[Row],
        engine: Any,
        settings: SamplingSettings,
        generator: torch.Generator | None,
    ) -> None:
        self.model, self.head, self.value_head = model, output_head(model), engine.value_head
        self.device: torch.device = next(bare_model(model).parameters()).device
        self.pad_id, self.eos_ids = engine.pad_id, engine.eos_ids
        self.settings, self.generator = settings, generator
        self.waiting = sorted(rows, key=lambda row: len(row.prompt))  # longest last, to be popped
        self.slots = engine.slots(len(rows))
        self.drawn = Drawn(rows, settings.max_new_tokens, self.device, self.value_head is not None)

    def run(self) -> None:
        """Decode until all rows have ended."""
        rows: list[Row] = []
        while rows or self.waiting:
            while self.waiting and len(rows) < self.slots:
                rows.append(self.waiting.pop())
            self._step(rows)
            rows = [row for row in rows if not self._ended(row)]

    def _step(self, rows: list[Row]) -> None:
        """Sample one more token of every row."""
        from rlhf_lightning.rollout.native import sample

        states = self._states([row.prompt + row.tokens for row in rows])
        places = to_device([self.drawn.place(row) for row in rows], self.device)
        chosen, logprobs = sample(self._logits(states, places), self.settings, self.generator)
        values = None if self.value_head is None else self.value_head(states)
        self.drawn.put(rows, places, chosen, logprobs, values)
        for row, token in zip(rows, chosen.tolist(), strict=True):
            row.read(token, self.eos_ids)

    def _logits(self, states: Tensor, put: Tensor, places: Tensor | slice = slice(None)) -> Tensor:
        """Return the logits of the tokens that will be stored where `put` says."""
        return self.head(states).float()[places]

    def _states(self, rows: list[list[int]]) -> Tensor:
        """Return the states [B, H] of the rows' last tokens."""
        longest = max(map(len, rows))
        ids = to_device([row + [self.pad_id] * (longest - len(row)) for row in rows], self.device)
        last = to_device([len(row) - 1 for row in rows], self.device)
        return hidden_states(self.model, ids)[torch.arange(len(rows), device=self.device), last]

    def _ended(self, row: Row) -> bool:
        return row.ended or len(row.tokens) == self.settings.max_new_tokens


def decoding_of(model: nn.Module) -> Any:
    """Return how to decode with a network: `Decoding`, or `UncachedDecoding` if the cache changes probabilities.

    This is determined once, on a few tokens, by comparing decoding from a cache with a forward pass over whole rows.
    """
    from rlhf_lightning.rollout.native import Decoding

    bare = bare_model(model)
    if not hasattr(bare, "decodes_with_cache"):
        with untouched(model), torch.no_grad():
            model.eval()
            gap, allowed = _gap(model, Decoding)
        bare.decodes_with_cache = gap <= allowed
        if not bare.decodes_with_cache:
            log.warning(
                "%s: its cache does not fit this engine (difference %.2g nats, at most %.1g is allowed); every token "
                "is drawn from a forward pass over its whole row, which is correct but slower",
                *(bare.config.model_type, gap, allowed),
            )
    return Decoding if bare.decodes_with_cache else UncachedDecoding


def _gap(model: nn.Module, decoding: Any) -> tuple[float, float]:
    """Return the difference of sampled tokens' log-probabilities from whole rows' (mean, nats), and the allowed one."""
    from rlhf_lightning.rollout.native import NativeEngine

    tokens = ordinary_tokens(model, sum(PROMPTS)).tolist()
    rows = [Row(tokens[sum(PROMPTS[:i]) :][:length]) for i, length in enumerate(PROMPTS)]
    device = next(bare_model(model).parameters()).device
    settings = SamplingSettings(max_new_tokens=NEW_TOKENS)
    engine = NativeEngine(pad_id=tokens[0], eos_ids=[], batch_size=SLOTS)
    try:
        decoded = decoding(model, rows, engine, settings, torch.Generator(device).manual_seed(0))
        decoded.run()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a family's code does with an unknown cache
        log.info("cached decoding fails: %s", error)
        return float("inf"), TOLERANCE
    gaps, spreads, read = [], [], []
    for row in rows:
        ids, flags = to_device([row.prompt + row.tokens, [0] * len(row.prompt) + [1] * len(row.tokens)], device)
        whole = predict_tokens(model, ids.unsqueeze(0), flags.unsqueeze(0))
        gaps.append((whole.logprobs - decoded.drawn.logprobs.view(len(rows), -1)[row.number]).abs())
        spreads.append(output_head(model)(whole.hidden).float().std(dim=-1).max())
        read.append(ids)
    gap, spread = torch.stack([torch.cat(gaps).mean(), torch.stack(spreads).max()]).tolist()
    allowed = max(TOLERANCE, ROUNDINGS * roundoff(model, whole.hidden) * spread)
    if TOLERANCE < allowed < gap:  # as in `models.self_check`
        allowed = max(allowed, noise_of(model, read))
    return gap, allowed
