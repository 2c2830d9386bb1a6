"""Is a family right? Compares the library's results on a tiny model with plain transformers, row by row."""

from __future__ import annotations

import tempfile
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from families.configs import VOCABULARY, tiny
from rlhf_lightning.errors import UserError
from rlhf_lightning.models import load_causal_lm, predict_tokens
from rlhf_lightning.rollout import NativeEngine, SamplingSettings
from rlhf_lightning.rollout.uncached import UncachedDecoding

# In nats; relative for gradients. Rows are longer than the windows of the tiny configurations.
TOLERANCE, OF_GRADIENTS = 2e-4, 1e-2
LENGTHS = (19, 14, 11, 6)
PROMPTS = (12, 7, 7, 3, 2)
DECODER = "config.is_decoder=true"


class Verdict(NamedTuple):
    """The verdict on one family: `right`, `refused`, `wrong`, `traceback` or `not built`, and why."""

    family: str
    outcome: str
    reason: str = ""
    cached: bool = True
    nats: float = 0.0


def judge(family: str) -> Verdict:
    """Build, load and compare a family. An encoder whose configuration can make it a decoder is also judged as one."""
    verdict = _judge(family)
    if verdict.outcome == "refused" and DECODER in verdict.reason:
        decoder = _judge(family, is_decoder=True)
        if decoder.outcome != "right":
            return decoder._replace(outcome="wrong" if decoder.outcome != "refused" else "refused")
    return verdict


def _judge(family: str, **changes: Any) -> Verdict:
    try:
        model = tiny(family, **changes)
        _read(model)
    except Exception as error:
        return Verdict(family, "not built", line(error))
    with tempfile.TemporaryDirectory() as folder:
        try:
            model.save_pretrained(folder)
        except Exception as error:
            return Verdict(family, "not built", line(error))
        try:
            ours = load_causal_lm(folder, dropout=False)
        except UserError as error:
            return Verdict(family, "refused", str(error))
        except Exception as error:
            return Verdict(family, "traceback", line(error))
        reader = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    try:
        return _compare(family, ours, reader)
    except UserError as error:
        return Verdict(family, "refused", str(error))
    except Exception as error:
        return Verdict(family, "traceback", line(error))


def _read(model: Any) -> None:
    """Raise if plain transformers cannot read a row, which means that the tiny configuration is at fault."""
    with torch.no_grad():
        model.eval()(input_ids=torch.arange(3, 15).unsqueeze(0))


def _compare(family: str, ours: Any, reader: Any) -> Verdict:
    rows = [torch.randint(3, VOCABULARY, (n,), generator=torch.Generator().manual_seed(n)) for n in LENGTHS]
    rows = [torch.cat([rows[0][:4], row[4:]]) for row in rows]
    ids = torch.zeros(len(rows), LENGTHS[0], dtype=torch.long)
    flags = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        flags[i, 4 : len(row)] = 1
    first, second = (predict_tokens(ours, ids, flags).logprobs for _ in range(2))  # in training mode
    if not torch.equal(first, second):
        return Verdict(family, "wrong", "random in training mode")
    expected = [_logprobs(reader, row, 4) for row in rows]
    gap = float((first - torch.cat(expected)).abs().max())
    if not gap <= TOLERANCE:
        return Verdict(family, "wrong", f"log-probabilities differ by {gap:.2g} nats", nats=gap)
    first.sum().backward()
    slope = gradient_gap(ours, reader) if differentiated(torch.cat(expected).sum()) else 0.0
    if not slope <= OF_GRADIENTS:
        return Verdict(family, "wrong", f"gradients differ by {slope:.2g} of their norm", nats=gap)
    engine = NativeEngine(pad_id=0, eos_ids=[5], batch_size=3)
    engine.sync(ours)
    prompts = [rows[i % 2][i : i + n].tolist() for i, n in enumerate(PROMPTS)]
    out = engine.generate(prompts, SamplingSettings(max_new_tokens=8), torch.Generator().manual_seed(0))
    for prompt, tokens, mask, drawn in zip(prompts, out.tokens, out.mask, out.logprobs, strict=True):
        response = tokens[mask.bool()].tolist()
        with torch.no_grad():
            whole = _logprobs(reader, torch.tensor(prompt + response), len(prompt))
        gap = max(gap, float((whole - drawn[mask.bool()]).abs().max()))
    outcome = "right" if gap <= TOLERANCE else "wrong"
    reason = "" if outcome == "right" else f"sampled log-probabilities differ by {gap:.2g} nats"
    return Verdict(family, outcome, reason, engine.decoding is not UncachedDecoding, gap)


def differentiated(loss: Tensor) -> bool:
    """Run the backward pass; two families (Reformer, RWKV) have none in evaluation mode."""
    try:
        loss.backward()
    except (AssertionError, RuntimeError):
        return False
    return True


def _logprobs(reader: Any, row: Tensor, start: int) -> Tensor:
    """Return log-probabilities of the tokens from `start` on, by plain transformers on the row alone."""
    logits = reader(input_ids=row[None], attention_mask=torch.ones_like(row[None])).logits[0].float()
    return logits.log_softmax(-1)[start - 1 : -1].gather(1, row[start:, None])[:, 0]


def gradient_gap(ours: Any, reader: Any) -> float:
    """Return the distance of two networks' gradients, relative to their norm."""
    pairs = zip(ours.parameters(), reader.parameters(), strict=True)
    grads = [(a.grad, b.grad) for a, b in pairs if a.grad is not None and b.grad is not None]
    distance = sum(float((a - b).square().sum()) for a, b in grads) ** 0.5
    return distance / max(sum(float(b.square().sum()) for _, b in grads) ** 0.5, 1e-12)


def line(error: Exception) -> str:
    """Return an error in one line."""
    return f"{type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[0][:160]}"
