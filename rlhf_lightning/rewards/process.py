"""A process reward model as a reward: the worst step, the product, the last step, or one number per step."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from rlhf_lightning.data import tokenize_steps
from rlhf_lightning.data.messages import Options, Text, keep_known
from rlhf_lightning.data.templates import chat_template
from rlhf_lightning.errors import UserError, key_beside, named_as
from rlhf_lightning.functional import aggregate_steps
from rlhf_lightning.models import ProcessRewardModel, freeze, load_process_scorer, step_separator
from rlhf_lightning.models.loading import Dtype
from rlhf_lightning.models.transfer import to_device
from rlhf_lightning.rewards.model import ModelReward
from rlhf_lightning.rewards.samples import SampledTokens
from rlhf_lightning.rewards.scores import Scores, check_scores
from rlhf_lightning.rewards.steps import at_ends, split_steps

Aggregation: TypeAlias = Literal["min", "product", "last", "steps"]
Row: TypeAlias = tuple[list[int], list[int]]  # ids, and the place of each step's last token among them


class ProcessReward(ModelReward):
    """Scores responses by the probability that each of their steps is right.

    Steps are what the model's separator separates. Responses are tokenised from their text as the model's training data
    was, each step followed by the separator, whatever the policy's tokenizer. A response without any step scores 0.

    Args:
        path: a run folder of a process reward model, or a Hugging Face folder with its `step_separator`.
        batch_size: responses scored at a time.
        aggregation: `min`, `product` or `last`: one number per response; `steps`: one per step, at its last token. The
            sum of the latter grows with the number of steps.
        dtype, attn_implementation: of the network, see `load_causal_lm`.

    Raises:
        UserError: it is not a process reward model.
    """

    def __init__(
        self,
        path: str | Path,
        batch_size: int = 32,
        aggregation: Aggregation = "min",
        dtype: Dtype = "float32",
        attn_implementation: str | None = None,
    ) -> None:
        super().__init__(path, batch_size, False, dtype, attn_implementation)
        separator = step_separator(path)
        if separator is None:
            raise UserError(
                f"{key_beside('aggregation', 'reward.')}: found {aggregation}, but {path} is not a process reward "
                "model (its config has no step_separator); set it to null, or train one with experiment=process_reward"
            )
        self.separator, self.aggregation = separator, aggregation

    @cached_property
    def model(self) -> ProcessRewardModel:
        """Return the network, loaded when first needed."""
        with named_as(self.key):
            model = load_process_scorer(self.folder, self.dtype, self.attn_implementation, kernels=self.kernels)
        self._check_tokenizer(model.classifier)
        return freeze(model)  # type: ignore[return-value]

    def share_backbone(self, policy: nn.Module) -> None:
        """Do nothing: the network is its own."""

    def origin(self) -> dict[str, str]:
        """Return the hash of the model's files, and the aggregation."""
        return super().origin() | {f"{self.key}.aggregation": self.aggregation}

    @torch.no_grad()
    def __call__(self, prompts: list[str], responses: list[str], **columns: Any) -> Scores:  # type: ignore[override]
        """Return one number per response, or per token; `columns` as for `ModelReward`.

        With `aggregation=steps` but without sampled tokens, as in an evaluation of texts, steps are added up.
        """
        ended = [bool(end) for end in columns.get("ended", [True] * len(responses))]
        asked, answers, options = self.texts(prompts, responses, ended, columns)
        steps = [split_steps(text, self.separator) for text in answers]
        found = self._of_steps(asked, [[text for _, text in each] for each in steps], options)
        if self.aggregation != "steps":
            mask = pad_sequence([torch.ones(len(row)) for row in found], batch_first=True)
            whole = aggregate_steps(pad_sequence(found, batch_first=True), mask, self.aggregation)
            return check_scores(whole.tolist(), len(responses), self.folder, self.key)
        sampled = columns.get("sampled")
        if not isinstance(sampled, SampledTokens):
            return [float(row.sum()) for row in found]
        starts = [max(text.find(answer), 0) for text, answer in zip(responses, answers, strict=True)]
        before = [text[:start].count(self.separator) for text, start in zip(responses, starts, strict=True)]
        places = [[skipped + place for place, _ in each] for skipped, each in zip(before, steps, strict=True)]
        return at_ends(sampled, [row.tolist() for row in found], self.separator, places)

    def _of_steps(
        self, prompts: Sequence[Text], steps: Sequence[Sequence[str]], options: Sequence[Options]
    ) -> list[Tensor]:
        """Return the probability that each step is right, one tensor per response."""
        known = [keep_known(each, chat_template(self.tokenizer, each)) if each else each for each in options]
        encoded = tokenize_steps(self.tokenizer, prompts, steps, self.separator, known)
        whole = self._fitting([(prompt, ids) for prompt, ids, _ in encoded])
        rows: list[Row] = [
            (ids, [max(len(ids) - len(answer) + end, 0) for end in ends])
            for ids, (_, answer, ends) in zip(whole, encoded, strict=True)
        ]
        found = [torch.zeros(len(each)) for each in steps]
        with_steps = [i for i, each in enumerate(steps) if each[0].strip() and rows[i][0]]
        by_length = sorted(with_steps, key=lambda i: len(rows[i][0]))
        for start in range(0, len(by_length), self.batch_size):
            picked = by_length[start : start + self.batch_size]
            with named_as(self.key):
                for i, scores in zip(picked, self._score_steps([rows[i] for i in picked]), strict=True):
                    found[i] = scores
        return found

    def _score_steps(self, rows: list[Row]) -> list[Tensor]:
        """Return the probability that each step of these rows is right."""
        device, length = self.model.device, max(len(ids) for ids, _ in rows)
        ids = to_device([row + [0] * (length - len(row)) for row, _ in rows], device)
        wanted = torch.zeros(len(rows), length, dtype=torch.bool)
        for i, (_, ends) in enumerate(rows):
            wanted[i, ends] = True
        nothing_shared = torch.zeros(len(rows), dtype=torch.long, device=device)
        logits = self.model(ids, wanted.to(device), nothing_shared).cpu()
        at_tokens = torch.zeros(wanted.shape).masked_scatter(wanted, logits.softmax(dim=1)[:, 1])
        return [at_tokens[i, ends] for i, (_, ends) in enumerate(rows)]
