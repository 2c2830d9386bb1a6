"""The last layer of packed rows computes its feed-forward block only where the network's output is read.

Later tokens read every token's keys and values, up to the last layer's attention. What follows there, the larger part
of a layer, works on each token alone, and for prompt tokens, which are not predicted, nobody reads the result.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from rlhf_lightning.kernels.families import is_part, mix_in


def read_less(network: Any) -> int:
    """Let the last layer, if it has such a form, skip what nobody reads. Return how many layers do."""
    backbone = network.base_model
    layer = backbone.layers[-1] if hasattr(backbone, "layers") else backbone
    if not is_part(layer, "DecoderLayer"):
        return 0
    mix_in(LastLayer, layer)
    return 1


def reads_less(backbone: Any) -> bool:
    """Return whether the backbone's output contains only the tokens that are read."""
    return hasattr(backbone, "layers") and isinstance(backbone.layers[-1], LastLayer)


class LastLayer(nn.Module):
    """Mixed into a layer's class. Without packed rows, the layer behaves as before."""

    input_layernorm: nn.Module
    self_attn: nn.Module
    post_attention_layernorm: nn.Module
    mlp: nn.Module

    def forward(self, hidden_states: Tensor, packed: Any = None, **kwargs: Any) -> Tensor:
        """Map [1, N, H] to [1, K, H], the tokens that are read; without packed rows, run the layer's own pass."""
        if packed is None:
            whole: Tensor = super().forward(hidden_states, **kwargs)
            return whole
        attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), packed=packed, **kwargs)
        read = (hidden_states + attended).index_select(1, packed.read)
        out: Tensor = read + self.mlp(self.post_attention_layernorm(read))
        return out
