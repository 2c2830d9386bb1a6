"""The least that a repetition needs, and how fast this machine is: together the roofline column.

Operations are those of matrix products, a multiplication and an addition each counted. Everything that both sides could
skip is left out: padding, recomputing a prompt for each of its answers, logits where nothing is predicted, and what a
rollout already knows (log-probabilities and values of its own tokens).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from comparison.job import Job
from rlhf_lightning.kernels.fast_products import product
from rlhf_lightning.models.forward import bare_model

Counted = dict[str, float]


@dataclass(frozen=True)
class Network:
    """The sizes that arithmetic depends on.

    Args:
        layers: weights of all layers, without embeddings and output layer.
        output: weights of the output layer.
        width: number of layers times the width of all attention heads of one layer.
        adapter: weights of the trained adapter; None: all weights are trained.
        element: bytes of a weight.
    """

    layers: int
    output: int
    width: int
    adapter: int | None
    element: int = 4

    @classmethod
    def of(cls, model: Any) -> Network:
        """Return the sizes of a Hugging Face model, or of the one inside an adapter or a reward model."""
        bare = bare_model(getattr(model, "classifier", model))
        config = bare.config.get_text_config()
        named = [(name, p.numel()) for name, p in bare.named_parameters() if p.ndim == 2]
        layers = sum(n for name, n in named if ".layers." in name and "lora_" not in name)
        adapter = sum(n for name, n in named if ".layers." in name and "lora_" in name and ".default." in name)
        heads = config.num_attention_heads * (getattr(config, "head_dim", None) or 0)
        width = config.num_hidden_layers * (heads or config.hidden_size)
        return cls(layers, config.vocab_size * config.hidden_size, width, adapter or None)

    def forward(self, tokens: float, attended: float, predicted: float) -> float:
        """Return the operations of a forward pass without the adapter.

        Args:
            tokens: in all rows.
            attended: pairs of a token and one that it attends to, itself included.
            predicted: positions with logits.
        """
        return 2 * self.layers * tokens + 4 * self.width * attended + 2 * self.output * predicted

    def step(self, tokens: float, attended: float, predicted: float) -> float:
        """Return the operations of a forward and a backward pass.

        In the backward pass, a product costs one product for its input, and one more for its weights if they are
        trained, as the adapter's always are. Both factors of attention's products are inputs: three times the forward
        pass.
        """
        forward = self.forward(tokens, attended, predicted)
        if self.adapter is None:
            return 3 * forward
        return 2 * forward + 4 * self.width * attended + 6 * self.adapter * tokens


def causal(length: float) -> float:
    """Return the pairs of a token and one that it attends to, in a row."""
    return length * (length + 1) / 2


def sft(network: Network, rows: list[tuple[int, int]]) -> Counted:
    """Return the operations of an epoch over rows of (tokens, labels)."""
    tokens, attended = sum(n for n, _ in rows), sum(causal(n) for n, _ in rows)
    return {"operations": network.step(tokens, attended, sum(labels for _, labels in rows))}


def preferences(network: Network, rows: list[tuple[int, list[int]]], reference: bool) -> Counted:
    """Return an epoch's operations over rows of (prompt tokens, answers' tokens), for DPO or a reward model."""
    answers = sum(sum(lengths) for _, lengths in rows)
    tokens = answers + sum(prompt for prompt, _ in rows)
    attended = sum(
        causal(prompt) + sum(causal(prompt + n) - causal(prompt) for n in lengths) for prompt, lengths in rows
    )
    predicted = answers if reference else 0
    operations = network.step(tokens, attended, predicted)
    if reference:
        operations += network.forward(tokens, attended, predicted)
    return {"operations": operations}


def decoding(network: Network, rows: list[tuple[int, int]], slots: int) -> Counted:
    """Return the operations of decoding rows of (prompt tokens, response tokens), `slots` at a time, never idle.

    The weights are read once per step. There are as many steps as the longest response has tokens, or as all responses
    have, divided by the slots.
    """
    tokens = sum(prompt + length - 1 for prompt, length in rows)
    attended = sum(causal(prompt + length - 1) for prompt, length in rows)
    predicted = sum(length for _, length in rows)
    steps = max(max(length for _, length in rows), -(-predicted // slots))
    return {
        "decoding_operations": network.forward(tokens, attended, predicted),
        "decoding_bytes": steps * (network.layers + network.output) * network.element,
    }


def ppo(network: Network, rows: list[tuple[int, int]], job: Job) -> Counted:
    """Return the operations of PPO iterations over rows of (prompt tokens, response tokens)."""
    lengths = [prompt + response for prompt, response in rows]
    tokens, attended, predicted = sum(lengths), sum(causal(n) for n in lengths), sum(n for _, n in rows)
    reference = network.forward(tokens, attended, predicted)
    reward = network.forward(tokens, attended, 0)
    update = job.ppo_epochs * network.step(tokens, attended, predicted)
    drawn = {name: job.iterations * value for name, value in decoding(network, rows, len(rows)).items()}
    return {"operations": job.iterations * (reference + reward + update), "update_operations": update, **drawn}


def measured_speeds(size: int = 2048, megabytes: int = 256, times: int = 3) -> Counted:
    """Return the best of a few measurements of this machine's speeds.

    These are operations per second of a float32 matrix product, by the library that we use and by torch's own, and
    bytes per second of reading memory.
    """
    left, right = torch.randn(size, size), torch.randn(size, size)
    vector, matrix = torch.randn(1024), torch.randn(megabytes * 2**20 // 4096, 1024)
    return {
        "operations": 2 * size**3 / min(_seconds(lambda: product(left, right)) for _ in range(times)),
        "torch_operations": 2 * size**3 / min(_seconds(lambda: left @ right) for _ in range(times)),
        "bytes": matrix.nbytes / min(_seconds(lambda: matrix @ vector) for _ in range(times)),
    }


def _seconds(work: Any) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def floor_seconds(needed: Counted, speeds: Counted) -> float:
    """Return the shortest possible time.

    All products run at the measured peak; decoding takes at least as long as reading the weights once per step.
    """
    products = needed.get("decoding_operations", 0) / speeds["operations"]
    reading = needed.get("decoding_bytes", 0) / speeds["bytes"]
    return needed.get("operations", 0) / speeds["operations"] + max(products, reading)
