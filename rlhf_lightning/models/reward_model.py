"""A scalar reward for a whole sequence: a backbone and a score head, stored as an ordinary Hugging Face folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from rlhf_lightning.compat.transformers_names import loads_in_float32
from rlhf_lightning.errors import UserError, blaming, key_beside, named
from rlhf_lightning.kernels.registry import Asked, read_asked
from rlhf_lightning.models.adapters import NF4, LoRA, is_adapter_folder, read_adapter
from rlhf_lightning.models.forward import bare_model, score_rows
from rlhf_lightning.models.loaded_weights import HEAD, NO_HEAD
from rlhf_lightning.models.loading import (
    Dtype,
    load_network,
    prepare_to_train,
    pretrained_arguments,
    run_model_folder,
)
from rlhf_lightning.models.precision import KeepsTypes, compute_in_float32
from rlhf_lightning.value_types import Attention, Kernels, Text

COST_MODEL = "cost_model"  # key of the config of a model whose scores are costs: above 0 is unsafe


class ScoreMoments(NamedTuple):
    """Mean and standard deviation of a reward model's scores of held-out answers: the unit of its scores."""

    mean: float
    std: float


class RewardModel(KeepsTypes):
    """r(prompt, answer): the score head at the last valid token (Ouyang et al. 2022, section 3.4).

    The network is transformers' sequence classifier with one label, so its folder loads anywhere. The last token is
    found by the attention mask, never by looking for the pad token: the classifier's own pooling reads the wrong
    position when pad == eos. Families whose scores are computed differently (an encoder's) are scored by their own
    forward pass, if that reads no padding (`self_check.check_classifier`). The head is computed in float32, whatever
    the dtype of the backbone.
    """

    def __init__(self, classifier: PreTrainedModel) -> None:
        super().__init__()
        self.classifier = classifier
        if hasattr(bare_model(classifier), HEAD):
            compute_in_float32(bare_model(classifier).score)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, prompt_lengths: Tensor | None = None) -> Tensor:
        """Return scores [B] of right-padded rows [B, L].

        With `prompt_lengths` [B], a prompt that several rows begin with is computed once.
        """
        return score_rows(self.classifier, input_ids, attention_mask, prompt_lengths).squeeze(-1).float()

    @property
    def device(self) -> torch.device:
        """Return the device of the weights."""
        return next(self.parameters()).device

    def keep_moments(self, moments: ScoreMoments | None) -> None:
        """Store the unit of the scores in the config that is saved with the model; None: it is not known."""
        mean, std = moments or (None, None)
        self.classifier.config.update({"score_mean": mean, "score_std": std})
        if hasattr(self.classifier.config, COST_MODEL):  # it began as a cost model
            self.classifier.config.update({COST_MODEL: None})

    def mark_as_cost_model(self) -> None:
        """Store in the config that is saved with the model that a score above 0 means unsafe."""
        self.classifier.config.update({"score_mean": None, "score_std": None, COST_MODEL: True})


def stored_config(path: str | Path) -> dict[str, Any]:
    """Return the config stored with a reward model: in a run folder, another folder, or under a hub name."""
    folder = run_model_folder(path)
    file = Path(folder) / "config.json"
    with blaming(f"{named()}: the configuration of {path} cannot be read"):
        if Path(folder).is_dir():
            found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
            return found
        config: dict[str, Any] = AutoConfig.from_pretrained(folder, trust_remote_code=False).to_dict()
        return config


def score_moments(path: str | Path) -> ScoreMoments | None:
    """Return the unit of the scores stored with a reward model, if any."""
    config = stored_config(path)
    mean, std = config.get("score_mean"), config.get("score_std")
    return None if mean is None or std is None else ScoreMoments(mean, std)


def is_cost_model(path: str | Path) -> bool:
    """Return whether a folder, or a hub name, declares that the sign of its scores separates safe from unsafe."""
    return stored_config(path).get(COST_MODEL) is True


def load_reward_model(
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
) -> RewardModel:
    """Return a reward model from its own folder, or a new score head on a causal language model's backbone.

    A new head is drawn from N(0, 1 / (H + 1)) with a fixed generator (Stiennon et al. 2020, appendix B.1). With an
    adapter, the head is trained with it and saved in its folder. Arguments and errors as for `load_causal_lm`.
    """
    return RewardModel(
        classifier_to_train(
            path,
            pretrained_arguments(dtype, attn_implementation, revision, trust_remote_code),
            dropout,
            activation_checkpointing,
            adapter,
            quantization,
            read_asked(kernels, key_beside("kernels")),
        )
    )


def classifier_to_train(
    path: str | Path,
    arguments: dict[str, Any],
    dropout: bool,
    activation_checkpointing: bool,
    adapter: LoRA | None,
    quantization: NF4 | None,
    asked: Asked,
    labels: int = 1,
) -> Any:
    """Return a sequence classifier with this many labels, its head new if the folder has none."""
    classifier, is_new, start = _load_classifier(path, arguments, adapter, quantization, new=HEAD, labels=labels)
    if is_new:
        weight = classifier.score.weight
        generator = torch.Generator("cpu").manual_seed(0)
        noise = torch.randn(weight.shape, generator=generator, dtype=torch.float32, device="cpu")
        with torch.no_grad():
            weight.copy_(noise * (weight.shape[1] + 1) ** -0.5)
    revision = arguments["revision"]
    return prepare_to_train(classifier, "SEQ_CLS", start, revision, dropout, activation_checkpointing, adapter, asked)


def load_scorer(
    path: str | Path,
    dtype: Dtype = "float32",
    attn_implementation: str | None = None,
    as_trained: bool = True,
    kernels: Kernels = "auto",
) -> RewardModel:
    """Return a reward model to score with: its score head comes from its folder, and is never new.

    Args:
        as_trained: keep the base in 4 bits if the adapter was trained on a 4-bit base, to score as in training. False:
            the adapter is merged into the unquantised base.
        kernels: as for `load_causal_lm`, except that names that do not fit this network are ignored: they are meant for
            the policy that it scores.

    Raises:
        UserError: the folder has no score head, or more than one label; others as for `load_causal_lm`.
    """
    return RewardModel(classifier_to_score(path, dtype, attn_implementation, as_trained, kernels))


def classifier_to_score(
    path: str | Path,
    dtype: Dtype,
    attn_implementation: str | None,
    as_trained: bool,
    kernels: Kernels,
    labels: int = 1,
) -> Any:
    """Return a sequence classifier with this many labels, whose head comes from its folder; see `load_scorer`."""
    asked = read_asked(kernels, key_beside("kernels"))
    folder = run_model_folder(path)
    arguments = pretrained_arguments(dtype, attn_implementation, None, False)
    adapter = is_adapter_folder(folder)
    if adapter and not any(f".{HEAD}." in name for name in read_adapter(folder)[1]):
        raise UserError(f"{named()}: {path} {NO_HEAD}")
    bits = quantization_of(folder) if adapter and as_trained else None
    if bits is not None:
        arguments["quantization_config"] = bits
    classifier, _, start = _load_classifier(path, arguments, None, None, HEAD if adapter else None, labels)
    return prepare_to_train(classifier, "SEQ_CLS", start, None, False, False, None, asked, True)


def _load_classifier(
    path: str | Path,
    arguments: dict[str, Any],
    adapter: LoRA | None,
    quantization: NF4 | None,
    new: str | None,
    labels: int,
) -> tuple[Any, bool, str | None]:
    """Return the sequence classifier, its head in float32, in the form of `load_network`."""
    with loads_in_float32(f"{HEAD}.weight"):
        loaded = load_network(
            AutoModelForSequenceClassification, path, {**arguments, "num_labels": labels}, adapter, quantization, new
        )
    if hasattr(loaded[0], HEAD):
        compute_in_float32(loaded[0].score)
    return loaded


def quantization_of(folder: str | Path) -> dict[str, Any] | None:
    """Return how the base of a reward model's adapter was quantised in training; None: not at all, or not known."""
    file = Path(folder) / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    found: dict[str, Any] | None = config.get("quantization_config")
    return found
