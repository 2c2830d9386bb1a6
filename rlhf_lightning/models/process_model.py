"""A process reward model: two classes, wrong and right, for each step of a solution."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from rlhf_lightning.errors import UserError, key_beside, named
from rlhf_lightning.kernels.registry import read_asked
from rlhf_lightning.models.adapters import NF4, LoRA
from rlhf_lightning.models.forward import bare_model, hidden_at
from rlhf_lightning.models.loading import Dtype, pretrained_arguments
from rlhf_lightning.models.reward_model import RewardModel, classifier_to_score, classifier_to_train, stored_config
from rlhf_lightning.value_types import Attention, Kernels, Text

STEP_LABELS = 2  # wrong, right
_SEPARATOR = "step_separator"  # in the model's config


class ProcessRewardModel(RewardModel):
    """p(step is right | prompt, steps up to it): a head of two classes at the last token of each step.

    The network is transformers' sequence classifier with two labels. Its own forward pass reads a row's last token
    only, which is the last step if the row ends there; ours reads the same head at every step.

    Raises:
        UserError: a family whose classes are not a layer over the state of one token, such as an encoder.
    """

    def __init__(self, classifier: PreTrainedModel) -> None:
        super().__init__(classifier)
        if getattr(bare_model(classifier), "own_pooling", False):
            raise UserError(
                f"{named()}: {type(bare_model(classifier)).__name__} classifies whole rows, not the state of a token, "
                "so it cannot score steps; choose a causal language model"
            )

    def forward(  # type: ignore[override]
        self, input_ids: Tensor, ends: Tensor, prompt_lengths: Tensor
    ) -> Tensor:
        """Return logits [K, 2] of the K steps of right-padded rows, in row-major order.

        Args:
            input_ids: [B, L].
            ends: [B, L] bool, the last token of each step.
            prompt_lengths: [B]; a prompt that several rows begin with is computed once.
        """
        hidden = hidden_at(self.classifier, input_ids, ends, prompt_lengths)
        logits: Tensor = bare_model(self.classifier).score(hidden)
        return logits.float()

    def keep_separator(self, separator: str) -> None:
        """Store the text that follows each step in the config that is saved with the model."""
        self.classifier.config.update({_SEPARATOR: separator})


def step_separator(path: str | Path) -> str | None:
    """Return the separator stored with a process reward model; None for any other model."""
    found = stored_config(path).get(_SEPARATOR)
    return found if isinstance(found, str) and found else None


def load_process_reward_model(
    path: Text | Path,
    dtype: Dtype = "float32",
    attn_implementation: Attention | None = None,
    revision: Text | None = None,
    trust_remote_code: bool = False,
    dropout: bool = False,
    activation_checkpointing: bool = False,
    adapter: LoRA | None = None,
    quantization: NF4 | None = None,
    kernels: Kernels = "auto",
) -> ProcessRewardModel:
    """Return a process reward model from its own folder, or a new head on a causal language model's backbone.

    Arguments, errors and the new head's weights as for `load_reward_model`.
    """
    return ProcessRewardModel(
        classifier_to_train(
            path,
            pretrained_arguments(dtype, attn_implementation, revision, trust_remote_code),
            dropout,
            activation_checkpointing,
            adapter,
            quantization,
            read_asked(kernels, key_beside("kernels")),
            STEP_LABELS,
        )
    )


def load_process_scorer(
    path: str | Path,
    dtype: Dtype = "float32",
    attn_implementation: str | None = None,
    as_trained: bool = True,
    kernels: Kernels = "auto",
) -> ProcessRewardModel:
    """Return a process reward model to score with. Arguments and errors as for `load_scorer`."""
    return ProcessRewardModel(classifier_to_score(path, dtype, attn_implementation, as_trained, kernels, STEP_LABELS))
