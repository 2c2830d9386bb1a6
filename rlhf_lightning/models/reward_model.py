"""A scalar reward for a whole sequence: a backbone and a score head, kept as an ordinary Hugging Face folder."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from rlhf_lightning.models.forward import bare_model, hidden_states
from rlhf_lightning.models.loading import Dtype, disable_dropout, pretrained_arguments, run_model_folder


class RewardModel(nn.Module):
    """r(prompt, answer): the score head at the last valid token (Ouyang et al. 2022, section 3.4).

    The network is transformers' sequence classifier with one label, so that its folder loads anywhere. The last token
    is found by the attention mask, never by looking for the pad token: the classifier's own pooling reads the wrong
    position when pad == eos.
    """

    def __init__(self, classifier: PreTrainedModel) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Scores [B] of right-padded rows [B, L]."""
        hidden = hidden_states(self.classifier, input_ids)
        last = attention_mask.sum(dim=1).long() - 1
        return bare_model(self.classifier).score(hidden[torch.arange(len(last)), last]).squeeze(-1).float()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write an AutoModelForSequenceClassification folder."""
        self.classifier.save_pretrained(folder)


def load_reward_model(
    path: str | Path,
    dtype: Dtype = "float32",
    attn_implementation: str | None = "sdpa",
    revision: str | None = None,
    trust_remote_code: bool = False,
    dropout: bool = False,
) -> RewardModel:
    """A reward model from its own folder, or a new score head on a causal language model's backbone.

    A new head is drawn from N(0, 1 / (H + 1)) with a fixed generator (Stiennon et al. 2020, appendix B.1).
    """
    arguments = pretrained_arguments(dtype, attn_implementation, revision, trust_remote_code)
    classifier, report = AutoModelForSequenceClassification.from_pretrained(
        run_model_folder(path), num_labels=1, output_loading_info=True, **arguments
    )
    if any(name.startswith("score") for name in report["missing_keys"]):
        weight = classifier.score.weight
        noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            weight.copy_(noise * (weight.shape[1] + 1) ** -0.5)
    if not dropout:
        disable_dropout(classifier)
    return RewardModel(classifier)
