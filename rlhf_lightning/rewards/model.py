"""A trained reward model as a reward."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlhf_lightning.data.messages import Options, Text
from rlhf_lightning.data.tokenization import truncate_prompt
from rlhf_lightning.errors import UserError, key_beside, named, named_as
from rlhf_lightning.models import (
    RewardModel,
    ScoreMoments,
    SharedRewardModel,
    freeze,
    load_scorer,
    load_tokenizer,
    run_model_folder,
    score_moments,
)
from rlhf_lightning.models.adapters import (
    base_name,
    base_of,
    can_be_switched,
    can_lie_beside,
    has_adapter,
    is_adapter_folder,
    is_quantized_like,
)
from rlhf_lightning.models.folder_marks import folder_mark
from rlhf_lightning.models.limits import check_tokens, positions
from rlhf_lightning.models.loading import Dtype
from rlhf_lightning.models.reward_model import quantization_of
from rlhf_lightning.models.transfer import to_device
from rlhf_lightning.rewards.lost_text import LostText
from rlhf_lightning.rewards.protocol import Reward
from rlhf_lightning.rewards.reading import (
    Tokens,
    as_answer,
    reads_the_same,
    row_options,
    sampled_rows,
    shown_prompt,
    text_rows,
)
from rlhf_lightning.rewards.samples import SampledTokens
from rlhf_lightning.rewards.scores import check_scores
from rlhf_lightning.value_types import Kernels

log = logging.getLogger(__name__)


class ModelReward(Reward):
    """Scores responses with a reward model.

    If the policy's tokenizer is the model's own, the sampled ids are scored as they are. Otherwise responses are
    tokenised again from their text by the function that prepared the reward model's training data, so that it sees the
    same as in training whatever the policy's tokenizer; what it cannot read is reported (`lost_text` counts it). A
    response that was cut off gets no EOS. A prompt that does not fit into the model's positions together with its
    response keeps its end; `truncated` counts them.

    Args:
        path: a run folder, a Hugging Face folder or a hub name.
        batch_size: responses scored at a time.
        standardize: return (score - mean) / std, with the moments of the scores of held-out answers that are stored
            with the model: the unit is then one standard deviation, whatever the model.
        dtype, attn_implementation: of the network, see `load_causal_lm`; if it shares the policy's base, that base's.

    Raises:
        UserError: `standardize` for a model without moments, or one that gave all held-out answers the same score.
    """

    reads_tokens = True

    def __init__(
        self,
        path: str | Path,
        batch_size: int = 32,
        standardize: bool = False,
        dtype: Dtype = "float32",
        attn_implementation: str | None = None,
    ) -> None:
        self.name = "model"
        self.truncated = 0
        self.key = named("reward.model")
        with named_as(self.key, key_beside("", "reward.")):
            self.folder = run_model_folder(path)
            self.tokenizer = load_tokenizer(path)
            self.moments = _moments_of(path) if standardize else ScoreMoments(0.0, 1.0)
        self.lost_text = LostText(self.key, self.folder, self.tokenizer)
        self.batch_size, self._mark = batch_size, folder_mark(self.folder)
        self.dtype, self.attn_implementation = dtype, attn_implementation
        self.kernels: Kernels = "auto"

    @cached_property
    def model(self) -> RewardModel | SharedRewardModel:
        """Return the network, loaded when first needed, unless `share_backbone` found it in the policy's base."""
        with named_as(self.key):
            model = load_scorer(self.folder, self.dtype, self.attn_implementation, kernels=self.kernels)
        self._check_tokenizer(model.classifier)
        return freeze(model)  # type: ignore[return-value]

    def use_kernels(self, kernels: Kernels) -> None:
        """Load the network with these kernels (in a run, the policy's), as far as they fit."""
        self.kernels = kernels

    def share_backbone(self, policy: nn.Module) -> None:
        """Score with an adapter on the policy's own base, if this reward model was trained on it.

        That is not the case if its base was in 4 bits and the policy's is not, or vice versa.
        """
        if has_adapter(policy) and is_adapter_folder(self.folder) and base_of(self.folder) == base_name(policy):
            same_bits = is_quantized_like(policy, quantization_of(self.folder))
            if same_bits and can_be_switched(policy) and can_lie_beside(self.folder):
                self._check_tokenizer(policy)
                with named_as(self.key):
                    self.model = SharedRewardModel(policy, self.folder)

    def _check_tokenizer(self, network: Any) -> None:
        """Check that the vocabulary has embeddings; tokens added to it are checked where they are read."""
        rows = network.get_input_embeddings().weight.shape[0]
        if self.tokenizer.vocab_size > rows:
            raise UserError(
                f"{self.key}: the tokenizer of {self.folder} has {self.tokenizer.vocab_size} tokens, its network "
                f"embeddings of {rows}; it is not the tokenizer that the model was trained with"
            )

    def origin(self) -> dict[str, str]:
        """Return the hash of the model's files, by its key, which a resume must find unchanged; {} for a hub name."""
        return {} if self._mark is None else {self.key: self._mark}

    def to(self, device: torch.device | str) -> ModelReward:
        """Move the network; PPO calls it with the policy's device."""
        if isinstance(self.model, nn.Module):
            self.model.to(device)
        return self

    @torch.no_grad()
    def __call__(self, prompts: list[str], responses: list[str], **columns: Any) -> list[float]:
        """Return the scores of the responses.

        `columns` may carry `messages` (conversational prompts), `tools`, `chat_template_kwargs`, `ended`, and
        `sampled`: the tokens themselves (see SampledTokens).

        Raises:
            UserError: tokens without an embedding in the model, or a response that leaves no positions for a prompt.
        """
        ended = [bool(end) for end in columns.get("ended", [True] * len(responses))]
        rows = self._fitting(self.rows(prompts, responses, ended, columns))
        scores = torch.empty(len(rows), dtype=torch.float32)
        by_length = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        for start in range(0, len(rows), self.batch_size):
            picked = by_length[start : start + self.batch_size]
            with named_as(self.key):
                scores[picked] = self._score([rows[i] for i in picked])
        scores = (scores - self.moments.mean) / self.moments.std
        return check_scores(scores.tolist(), len(responses), self.folder, self.key)

    def rows(
        self, prompts: Sequence[str], responses: Sequence[str], ended: Sequence[bool], columns: dict[str, Any]
    ) -> list[Tokens]:
        """Return the ids of prompts and responses that the model reads."""
        messages, sampled = columns.get("messages") or [None] * len(prompts), columns.get("sampled")
        templated = any(said is not None for said in messages)
        if isinstance(sampled, SampledTokens) and reads_the_same(self.tokenizer, sampled.tokenizer, templated):
            seen: list[Text] = [said or text for said, text in zip(messages, prompts, strict=True)]
            return sampled_rows(self.tokenizer, sampled, seen, ended, row_options(columns, messages))
        shown, answers, options = self.texts(prompts, responses, ended, columns)
        return self._of_texts(shown, answers, ended, options)

    def texts(
        self, prompts: Sequence[str], responses: Sequence[str], ended: Sequence[bool], columns: dict[str, Any]
    ) -> tuple[list[Text], list[str], list[Options]]:
        """Return prompts and responses as text, without what the policy's chat template writes, and its options."""
        messages = columns.get("messages") or [None] * len(prompts)
        options = row_options(columns, messages)
        asked: list[Text] = [text if said is None else said for text, said in zip(prompts, messages, strict=True)]
        sampled = columns.get("sampled")
        if not isinstance(sampled, SampledTokens):
            return asked, list(responses), options
        answers = [
            as_answer(sampled.tokenizer, asked[i], response, ended[i], options[i])
            for i, response in enumerate(responses)
        ]
        asked = [
            prompt if isinstance(prompt, str) else shown_prompt(sampled, prompts[i], prompt, self.tokenizer, options[i])
            for i, prompt in enumerate(asked)
        ]
        return asked, answers, options

    def _of_texts(
        self, prompts: list[Text], responses: Sequence[str], ended: Sequence[bool], options: Sequence[Options]
    ) -> list[Tokens]:
        rows = text_rows(self.tokenizer, prompts, responses, ended, options)
        self.lost_text.watch(prompts, responses, rows)
        return rows

    def _fitting(self, rows: list[Tokens]) -> list[list[int]]:
        """Return prompt and response of every row, with as much of the prompt's end as the model can read."""
        limit = positions(self.network)
        fitting = []
        for prompt, response in rows:
            room = None if limit is None else limit - len(response)
            if room is not None and room < min(len(prompt), 1):
                raise UserError(
                    f"{self.key}: a response has {len(response)} tokens, and {self.folder} has {limit} positions for "
                    f"prompt and response; set rollout.max_new_tokens to less than {limit}"
                )
            short = truncate_prompt(prompt, room, self.tokenizer.bos_token_id)
            if len(short) < len(prompt):
                self.truncated += 1
                if self.truncated == 1:
                    log.warning(
                        "%s: the start of a prompt is cut where %s has fewer positions (%d) than prompt and "
                        "response have tokens; data.max_prompt_length shortens them for the policy too",
                        self.key,
                        self.folder,
                        limit,
                    )
            fitting.append(short + response)
        check_tokens(self.network, self.tokenizer, (token for row in fitting for token in row), self.key)
        return fitting

    def check_length(self, max_new_tokens: int) -> None:
        """Raise UserError if a response of this many tokens leaves no positions for a prompt."""
        limit = positions(self.network)
        if limit is not None and max_new_tokens >= limit:
            raise UserError(
                f"rollout.max_new_tokens: found {max_new_tokens}, and {self.folder} ({self.key}) has {limit} "
                f"positions for prompt and response; set it to less than {limit}"
            )

    @property
    def network(self) -> nn.Module:
        """Return the network whose embeddings and positions are used: the policy's, if the backbone is shared."""
        return self.model.policy if isinstance(self.model, SharedRewardModel) else self.model.classifier

    def _score(self, rows: list[list[int]]) -> torch.Tensor:
        device = self.model.device
        length = max(map(len, rows))
        ids = to_device([row + [0] * (length - len(row)) for row in rows], device)
        mask = to_device([[1] * len(row) + [0] * (length - len(row)) for row in rows], device)
        return self.model(ids, mask).cpu()


def _moments_of(path: str | Path) -> ScoreMoments:
    moments, key = score_moments(path), key_beside("standardize")
    if moments is None:
        raise UserError(
            f"{key}=true: {path} has no score_mean and score_std; train it with held-out pairs "
            f"(data.val or data.val_fraction), or set {key}=false"
        )
    if moments.std == 0:
        raise UserError(f"{key}=true: {path} gave all held-out answers the same score (score_std is 0)")
    return moments
