"""A frozen teacher, whose next-token distributions a student learns."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_lightning.errors import UserError, named_as
from rlhf_lightning.functional import chunked_divergences
from rlhf_lightning.models.forward import bare_model, output_head, output_width, states_before, tokens_at_once
from rlhf_lightning.models.loading import Dtype, freeze, load_causal_lm, load_tokenizer
from rlhf_lightning.models.remembered_hash import RememberedHash
from rlhf_lightning.models.sharding import as_forward

KEY = "algorithm.teacher"


class Teacher:
    """A language model that gives the divergences of a student from it.

    It is not an nn.Module, so that it is neither trained, nor set to training mode, nor part of checkpoints.

    Args:
        model: the teacher; it is frozen.
    """

    def __init__(self, model: Any) -> None:
        self.model = freeze(model)
        self._hash = RememberedHash()

    def fingerprint(self) -> str:
        """Return the hash of the teacher's weights; it must never change, within a run or across a resume."""
        return self._hash.of(self.model)

    def divergences(
        self, student: nn.Module, input_ids: Tensor, flags: Tensor, beta: float, temperature: float
    ) -> Tensor:
        """Return `generalized_jsd` at each of the K flagged tokens of right-padded rows [B, L], in row-major order."""
        if next(self.model.parameters()).device != input_ids.device:
            self.model.to(input_ids.device)
        return as_forward(student, _divergences)(self.model, input_ids, flags.bool(), beta, temperature)


def load_teacher(path: str | Path, tokenizer: Any, dtype: Dtype = "auto") -> Teacher:
    """Return the teacher in a run folder, a Hugging Face folder or of a hub name.

    Args:
        path: where it is.
        tokenizer: the student's.
        dtype: of the weights.

    Raises:
        UserError: there is no model, or it has another vocabulary than the student.
    """
    with named_as(KEY):
        own, its = (_vocabulary_hash(each) for each in (tokenizer, load_tokenizer(path)))
        if own != its:
            raise UserError(
                f"{KEY}: the vocabulary of {path} (SHA-256 {its[:12]}) is not the student's ({own[:12]}), so their "
                "distributions over tokens cannot be compared; take a teacher with the student's tokenizer"
            )
        return Teacher(load_causal_lm(path, dtype))


def _divergences(
    student: nn.Module, teacher: nn.Module, input_ids: Tensor, flags: Tensor, beta: float, temperature: float
) -> Tensor:
    width = min(output_width(student), output_width(teacher))  # what lies beyond pads an embedding
    with torch.no_grad():
        taught = states_before(teacher, input_ids, flags)
    hidden = states_before(student, input_ids, flags)
    heads = [output_head(student), output_head(teacher)]
    first, second = (lambda states, head=head: head(states)[..., :width] for head in heads)
    at_once = tokens_at_once(2 * bare_model(student).config.get_text_config().vocab_size, hidden.is_cpu)
    return chunked_divergences(hidden, first, taught, second, beta, temperature, at_once)


def _vocabulary_hash(tokenizer: Any) -> str:
    """Return SHA-256 of a tokenizer's tokens and their ids."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()
