"""How far apart the meanings of a policy's responses are, by the embeddings of a Hugging Face encoder."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from rlhf_lightning.errors import UserError, blaming, named
from rlhf_lightning.evaluation.win_rate import Z_95
from rlhf_lightning.functional import masked_mean
from rlhf_lightning.models.loading import run_model_folder

KEY = "embeddings.model"
_NONE_BEFORE_POSITIONS = 2  # RoBERTa's first position is the padding's id plus 1


@dataclass(frozen=True)
class Distance:
    """A mean distance with its 95% interval."""

    mean: float
    low: float
    high: float


class Encoder:
    """Embeds texts as the mean of an encoder's last hidden states over the text's tokens, scaled to length 1.

    Any folder or hub name that transformers' AutoModel loads will do; a sentence-transformers folder if it pools by the
    mean. Texts are cut to what the encoder reads.

    Args:
        path: the encoder's folder or hub name.
        batch_size: texts embedded at a time.

    Raises:
        UserError: it cannot be loaded, or pools otherwise.
    """

    def __init__(self, path: str | Path, batch_size: int = 64) -> None:
        folder = run_model_folder(path)
        _check_pooling(Path(folder))
        with blaming(f"{named()}: {path} cannot be loaded as an encoder"):
            self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            self.model: Any = AutoModel.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False).eval()
        self.model.to("cuda" if torch.cuda.is_available() else "cpu")
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        positions = getattr(self.model.config, "max_position_embeddings", None) or self.tokenizer.model_max_length
        self.longest = min(self.tokenizer.model_max_length, positions - _NONE_BEFORE_POSITIONS)
        self.batch_size = batch_size

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Return embeddings [N, H] of length 1 in float32; a text without tokens is embedded as the padding token."""
        parts = []
        for start in range(0, len(texts), self.batch_size):
            batch = list(texts[start : start + self.batch_size])
            inputs = self.tokenizer(batch, truncation=True, max_length=self.longest)["input_ids"]
            ids = [row or [self.tokenizer.pad_token_id] for row in inputs]
            width = max(map(len, ids))
            tokens = torch.tensor([[*row, *[self.tokenizer.pad_token_id] * (width - len(row))] for row in ids])
            mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids])
            tokens, mask = tokens.to(self.model.device), mask.to(self.model.device)
            hidden = self.model(input_ids=tokens, attention_mask=mask).last_hidden_state.float()
            pooled = masked_mean(hidden, mask[:, :, None].expand_as(hidden).float(), dim=1)
            parts.append(torch.nn.functional.normalize(pooled, dim=-1).cpu())
        return torch.cat(parts)


def embedding_metrics(encoder: Encoder, texts: Sequence[str], samples_per_prompt: int) -> dict[str, float]:
    """Return a policy's mean embedding distances with their intervals; docs/metrics.md defines the names.

    Args:
        texts: prompt-major: the `samples_per_prompt` responses to the first prompt, then those to the second.
    """
    vectors = encoder(texts).double().view(-1, samples_per_prompt, encoder.model.config.hidden_size)
    found = {"embedding_distance": between_prompts(vectors)}
    if samples_per_prompt > 1:
        found["embedding_distance_same_prompt"] = within_prompts(vectors)
    return {
        f"{name}{end}": value
        for name, each in found.items()
        for end, value in (("", each.mean), ("_low", each.low), ("_high", each.high))
    }


def between_prompts(vectors: Tensor) -> Distance:
    """Return the mean cosine distance of two responses to different prompts, a number from 0 to 2.

        D = mean over p != q, k, l of 1 - u_pk . u_ql

    The interval is normal, with the jackknife error over prompts. Every pair shares its prompts with others, so the
    pairs are not independent, and counting them would make it far too narrow.

    Args:
        vectors: [prompts, samples, H], of length 1.

    Raises:
        UserError: fewer than three prompts.
    """
    prompts = len(vectors)
    if prompts < 3:
        raise UserError(f"{KEY}: found {prompts} prompts; a distance with an interval needs three")
    means = vectors.mean(dim=1)
    total = means.sum(dim=0)
    # For each prompt, the mean distance to all others.
    own = 1 - ((means @ total) - means.square().sum(dim=1)) / (prompts - 1)
    mean = float(own.mean())
    # Without prompt i, the mean is D + 2 (D - own_i) / (prompts - 2).
    error = 2 / (prompts - 2) * math.sqrt((prompts - 1) / prompts * float((own - mean).square().sum()))
    return _interval(mean, error)


def within_prompts(vectors: Tensor) -> Distance:
    """Return the mean cosine distance of two responses to the same prompt; arguments as for `between_prompts`.

    Source of both: the across-input and per-input diversity of Kirk et al. 2024, "Understanding the effects of RLHF on
    LLM generalisation and diversity", section 3.
    """
    prompts, samples = vectors.shape[:2]
    own = 1 - (vectors.sum(dim=1).square().sum(dim=1) - samples) / (samples * (samples - 1))
    error = float(own.std()) / math.sqrt(prompts) if prompts > 1 else math.inf
    return _interval(float(own.mean()), error)


def _interval(mean: float, error: float) -> Distance:
    return Distance(mean, max(0.0, mean - Z_95 * error), min(2.0, mean + Z_95 * error))


def _check_pooling(folder: Path) -> None:
    """Raise UserError for a sentence-transformers folder that does not pool by the mean."""
    file = folder / "1_Pooling" / "config.json"
    if file.is_file():
        settings = json.loads(file.read_text(encoding="utf-8"))
        if not settings.get("pooling_mode_mean_tokens", settings.get("pooling_mode", "mean") == "mean"):
            raise UserError(
                f"{named()}: {file} pools otherwise than by the mean over tokens; give an encoder that does"
            )
