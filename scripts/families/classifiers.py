"""Is a family of sequence classifiers right as a reward model? Compares scores with plain transformers, row by row."""

from __future__ import annotations

import contextlib
import tempfile
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from families.configs import VOCABULARY, tiny
from families.judge import LENGTHS, OF_GRADIENTS, TOLERANCE, Verdict, differentiated, gradient_gap, line
from rlhf_lightning.errors import UserError
from rlhf_lightning.models import freeze, load_reward_model, load_scorer
from rlhf_lightning.models.forward import bare_model


def judge_classifier(family: str) -> Verdict:
    """Build a classifier with one label, load it to score and to train, and compare scores and gradients.

    For a correct family, `cached` says whether its head reads the last token's states as this library computes them;
    False: the scores come from its own forward pass.
    """
    try:
        model = tiny(family, AutoModelForSequenceClassification, num_labels=1)
        with torch.no_grad(), contextlib.suppress(ValueError):  # some say what their rows must have: to be refused
            model.eval()(input_ids=torch.arange(3, 15).unsqueeze(0))
    except Exception as error:
        return Verdict(family, "not built", line(error))
    with tempfile.TemporaryDirectory() as folder:
        try:
            model.save_pretrained(folder)
        except Exception as error:
            return Verdict(family, "not built", line(error))
        try:
            scorer = freeze(load_scorer(folder))
            reader = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
            return _compare(family, folder, scorer, reader)
        except UserError as error:
            return Verdict(family, "refused", str(error))
        except Exception as error:
            return Verdict(family, "traceback", line(error))


def _compare(family: str, folder: str, scorer: Any, reader: Any) -> Verdict:
    rows = [torch.randint(3, VOCABULARY, (n,), generator=torch.Generator().manual_seed(n)) for n in LENGTHS]
    rows = [torch.cat([rows[0][:4], row[4:]]) for row in rows]
    ids = torch.stack([torch.nn.functional.pad(row, (0, LENGTHS[0] - len(row)), value=7) for row in rows])
    mask = torch.stack([(torch.arange(LENGTHS[0]) < len(row)).long() for row in rows])
    expected = torch.cat([_score(reader, row) for row in rows])
    allowed = TOLERANCE * max(1.0, float(expected.detach().abs().max()))
    with torch.no_grad():
        gap = float((scorer(ids, mask) - expected).abs().max())
    if not gap <= allowed:
        return Verdict(family, "wrong", f"scores differ by {gap:.2g}", nats=gap)
    trained = load_reward_model(folder, dropout=False)
    first, second = (trained(ids, mask, torch.full((len(rows),), 4)) for _ in range(2))  # in training mode
    if not torch.equal(first, second):
        return Verdict(family, "wrong", "random in training mode")
    gap = max(gap, float((first - expected).abs().max()))
    if not gap <= allowed:
        return Verdict(family, "wrong", f"scores in training differ by {gap:.2g}", nats=gap)
    first.sum().backward()
    slope = gradient_gap(trained.classifier, reader) if differentiated(expected.sum()) else 0.0
    own = bool(getattr(bare_model(trained.classifier), "own_pooling", False))
    if not slope <= OF_GRADIENTS:
        return Verdict(family, "wrong", f"gradients differ by {slope:.2g} of their norm", not own, gap)
    return Verdict(family, "right", "", not own, gap)


def _score(reader: Any, row: Tensor) -> Tensor:
    """Return the score [1] of a single row, by plain transformers."""
    scores: Tensor = reader(input_ids=row[None], attention_mask=torch.ones_like(row[None])).logits[0].float()
    return scores
