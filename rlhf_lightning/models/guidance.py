"""Decoding with the values of implicit language Q-learning: every logit of a guided model includes them.

A guided model gives log pi + b (min Q-hat - V) wherever it gives logits: in its own forward pass, which transformers'
`generate` calls, and in `output_head`, which the native engine and the log-probabilities of an evaluation read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from rlhf_lightning.functional import guided_logits
from rlhf_lightning.models.forward import backbone, bare_model, hidden_width, output_width
from rlhf_lightning.models.ilql_heads import TargetHeads, check_fits, read_heads
from rlhf_lightning.models.loading import Dtype, freeze, load_causal_lm, run_model_folder


class Guidance(nn.Module):
    """Adds b (min Q-hat - V) to the log-probabilities of a policy.

    Args:
        heads: of the states that the logits come from.
        strength: b.
    """

    def __init__(self, heads: TargetHeads, strength: float) -> None:
        super().__init__()
        self.heads, self.strength = heads, strength
        self.states: Tensor | None = None  # of the forward pass in progress

    def forward(self, logits: Tensor, states: Tensor) -> Tensor:
        """Return the logits [..., V] to sample from, of a policy's logits and the states [..., H] behind them."""
        q_values, values = self.heads(states)
        return guided_logits(logits, q_values, values, self.strength)

    def keep(self, body: Any, inputs: Any, output: Any) -> None:
        """Keep the states that the backbone returns."""
        self.states = output[0]

    def add(self, model: Any, inputs: Any, output: Any) -> Any:
        """Replace the logits that the model's forward pass returns."""
        assert self.states is not None
        kept = self.states[:, -output.logits.shape[1] :]  # generation asks for the last logits only
        output.logits, self.states = self(output.logits, kept), None
        return output


def guide(model: nn.Module, heads: TargetHeads, strength: float) -> None:
    """Let a model decode with the heads' values from now on.

    Args:
        model: a causal language model, which is only used for inference.
        heads: see `read_heads`.
        strength: b, per unit of reward.
    """
    bare = bare_model(model)
    guidance = Guidance(heads, strength)
    freeze(guidance).to(next(bare.parameters()).device)
    bare.guidance = guidance
    backbone(model).register_forward_hook(guidance.keep)
    bare.register_forward_hook(guidance.add)


def load_policy(
    path: str | Path, dtype: Dtype = "float32", attn_implementation: str | None = None, strength: float | None = None
) -> Any:
    """Return a model as it decodes: with the values of its heads if its folder has them.

    Args:
        path: a run folder, a Hugging Face folder or a hub name.
        dtype, attn_implementation: see `load_causal_lm`.
        strength: b; None: that of the export; 0: the policy alone.

    Raises:
        UserError: see `load_causal_lm`; heads of another model, or changed ones.
    """
    model = load_causal_lm(path, dtype, attn_implementation)
    found = read_heads(run_model_folder(path))
    if found is not None and strength != 0:
        heads, exported = found
        check_fits(heads, hidden_width(model), output_width(model), path)
        guide(model, heads, exported if strength is None else strength)
    return model
