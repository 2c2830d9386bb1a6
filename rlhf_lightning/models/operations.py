"""How many operations training needs: the numerator of model FLOP utilisation.

A matrix product with W weights costs 2 W operations per token in the forward pass (a multiplication and an addition
each), 2 W in the backward pass for the gradient of its input, and 2 W more for the gradient of its weights if they are
trained. In a layer, attention costs 4 d operations for each pair of a token and one that it attends to, where d is the
width of all heads together, and twice that in the backward pass, whether or not anything in it is trained:

    step = 6 W_trained n + 4 W_frozen n + 12 layers d pairs + (6 or 4) W_output predicted

for n tokens. This is the 6 N per token of Kaplan et al. 2020 (section 2.1, table 1) with the attention term of
Chowdhery et al. 2022 (PaLM, appendix B), counted where we compute: attention is causal, so a row of L tokens has L (L +
1) / 2 pairs; logits exist where tokens are predicted; embeddings involve no product. Frozen weights (LoRA's base) have
no weight gradients. Recomputation (activation checkpointing) is not counted, nor are norms, softmax and heads with one
output. Only dense layers are counted, and attention as if there were no sliding window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from rlhf_lightning.models.forward import bare_model


@dataclass(frozen=True)
class Operations:
    """The sizes of a network that its number of operations depends on.

    Args:
        trained: weights of trained matrix products, without the output layer.
        frozen: weights of frozen ones, likewise.
        output: weights of the output layer, 0 without one.
        output_trained: whether these are trained.
        width: number of layers times the width of all attention heads of one layer.

    >>> full, lora = Operations(10, 0, 5, True, 2), Operations(1, 10, 5, False, 2)
    >>> full.forward(3, 6, 2), full.step(3, 6, 2)  # 3 tokens, 6 pairs, 2 predicted
    (128.0, 384.0)
    >>> lora.step(3, 6, 2)  # 18 + 120 + 144 + 40
    322.0
    """

    trained: int
    frozen: int
    output: int
    output_trained: bool
    width: int

    def forward(self, tokens: float, pairs: float, predicted: float) -> float:
        """Return the operations of a forward pass.

        Args:
            tokens: number of tokens in all rows.
            pairs: pairs of a token and one that it attends to, including itself.
            predicted: positions with logits.
        """
        return 2.0 * (self.trained + self.frozen) * tokens + 4 * self.width * pairs + 2 * self.output * predicted

    def step(self, tokens: float, pairs: float, predicted: float) -> float:
        """Return the operations of a forward and a backward pass; arguments as for `forward`."""
        output = (6 if self.output_trained else 4) * self.output
        return (6.0 * self.trained + 4 * self.frozen) * tokens + 12 * self.width * pairs + output * predicted


def operations_of(network: nn.Module) -> Operations:
    """Return the sizes of a Hugging Face model, of the one inside an adapter, or of a reward model."""
    bare: Any = bare_model(getattr(network, "classifier", network))
    sizes = {True: 0, False: 0}
    output = bare.get_output_embeddings()
    for name, module in bare.base_model.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and module is not output:
            trained = bool(module.weight.requires_grad)
            if trained or "lora_" not in name:  # excludes frozen adapters of other roles
                sizes[trained] += _weights(module)
    return Operations(
        sizes[True],
        sizes[False],
        0 if output is None else _weights(output),
        output is not None and bool(output.weight.requires_grad),
        sum(_attention_width(layer) for layer in _layers(bare.config.get_text_config())),
    )


def _layers(config: Any) -> list[Any]:
    """Return the configuration of every layer: some differ (Gemma 4's global layers have wider heads)."""
    return list(config.per_layer_config) if hasattr(config, "num_hidden_layers") else []


def _attention_width(config: Any) -> int:
    """Return the width of a layer's queries; 0 in families without attention, such as state spaces."""
    heads = getattr(config, "num_attention_heads", None) or 0
    return int(heads * (getattr(config, "head_dim", None) or config.hidden_size // max(heads, 1)))


def _weights(module: Any) -> int:
    """Return the number of weights of a product, by its shape: 4-bit weights are packed."""
    return module.weight.numel() if isinstance(module, Conv1D) else module.in_features * module.out_features
