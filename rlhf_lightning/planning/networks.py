"""Networks without weights: on the meta device, to count them, and on fake tensors, to trace a pass through them."""

from __future__ import annotations

import copy
import functools
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.pytorch_utils import Conv1D

from rlhf_lightning.compat.torch_names import FakeTensors
from rlhf_lightning.kernels.registry import Asked
from rlhf_lightning.models.adapters import NF4, OUTPUT_LAYERS, LoRA
from rlhf_lightning.models.forward import bare_model
from rlhf_lightning.models.ilql_heads import ILQLHeads
from rlhf_lightning.models.loading import prepare_to_train
from rlhf_lightning.models.precision import cast_weights, compute_in_float32

# Attention as in training, where rows are padded on the right and there is no mask. transformers cannot inspect a fake
# tensor to see that none is needed; for an attention without a registered mask function, it makes none.
WITHOUT_MASK = "sdpa_without_mask"
AttentionInterface.register(WITHOUT_MASK, sdpa_attention_forward)

BLOCK, DOUBLE_BLOCK = 64, 256  # weights that share a scale, and scales that share a second-level scale


class Weights(NamedTuple):
    """Bytes of a network's weights."""

    frozen: int
    trainable: int
    largest_trainable: int  # of a single parameter
    output_layer: int  # the part of `trainable` whose gradient exists before the first layer's

    @property
    def total(self) -> int:
        return self.frozen + self.trainable


@dataclass(frozen=True)
class Network:
    """How a network is built, from its transformers configuration alone.

    Args:
        source: where the configuration was read from; two networks with equal settings and sources are equal.
        architecture: the transformers configuration.
        task: a language model or a scalar reward model.
        dtype: dtype of the weights as they are loaded.
        attn_implementation: `eager` stores attention weights [heads, L, L]; all others store queries, keys and values.
        cast_to: the dtype that a precision such as bf16-true gives the weights afterwards, but not adapters and heads.
        kernels: the value of `model.kernels`.
    """

    source: str
    architecture: Any = field(compare=False)
    task: Literal["CAUSAL_LM", "SEQ_CLS"]
    dtype: torch.dtype
    attn_implementation: str | None = None
    lora: LoRA | None = field(default=None, hash=False)  # its list of layers has no hash
    nf4: NF4 | None = None
    activation_checkpointing: bool = False
    dropout: bool = False
    cast_to: torch.dtype | None = None
    kernels: Asked = "auto"

    @property
    def text(self) -> Any:
        """Return the part of the configuration that describes the language model."""
        return self.architecture.get_text_config()

    @property
    def layers(self) -> int:
        return int(self.text.num_hidden_layers)

    @property
    def vocab_size(self) -> int:
        return int(self.text.vocab_size)

    @property
    def element(self) -> int:
        """Return the bytes of one number in the network's hidden states."""
        return (self.cast_to or self.dtype).itemsize

    def shallow(self, depth: int) -> Network:
        """Return the same network with `depth` layers."""
        architecture = copy.deepcopy(self.architecture)
        text = architecture.get_text_config()
        text.num_hidden_layers = depth
        if getattr(text, "layer_types", None):
            kind = "full_attention" if "full_attention" in text.layer_types else text.layer_types[0]
            text.layer_types = [kind] * depth
        return replace(self, architecture=architecture, source=f"{self.source}, {depth} layers")

    def build(self) -> Any:
        """Return the network on the meta device, as the loaders of `models` prepare it."""
        classes = AutoModelForCausalLM if self.task == "CAUSAL_LM" else AutoModelForSequenceClassification
        architecture = copy.deepcopy(self.architecture)
        if self.task == "SEQ_CLS":
            architecture.num_labels = 1
        with torch.device("meta"), _quiet():
            attention = "eager" if self.attn_implementation == "eager" else WITHOUT_MASK
            network = classes.from_config(architecture, dtype=self.dtype, attn_implementation=attention)
            if self.nf4 is not None:
                _put_in_four_bits(network, self.nf4)
            if self.task == "SEQ_CLS":
                compute_in_float32(network.score)
            network = prepare_to_train(
                *(network, self.task, None, None, self.dropout, self.activation_checkpointing, self.lora),
                kernels=self.kernels,
            )
        if self.cast_to is not None:
            cast_weights(network, self.cast_to)
        return network

    def fake(self, mode: FakeTensors, depth: int) -> Any:
        """Return a shallow copy on fake tensors, which run every operator without computing anything."""
        network = self.shallow(depth).build()
        made: dict[int, nn.Parameter] = {}
        with mode:
            for module in network.modules():
                for name, parameter in [*module.named_parameters(recurse=False, remove_duplicate=False)]:
                    # Tied weights stay tied.
                    setattr(module, name, made.setdefault(id(parameter), _fake_parameter(parameter)))
                for name, buffer in [*module.named_buffers(recurse=False, remove_duplicate=False)]:
                    setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))
        return network

    @functools.lru_cache  # noqa: B019  a few networks a process
    def weights(self) -> Weights:
        """Return the bytes of the whole network, at its full depth."""
        if self.lora is None or self.layers <= 2:
            return self._count()
        # Adding adapters to every layer of a deep network takes seconds; they are the same on each layer.
        one, two = self.shallow(1)._count(), self.shallow(2)._count()
        adapters = two.trainable + (self.layers - 2) * (two.trainable - one.trainable)
        return Weights(replace(self, lora=None)._count().total, adapters, two.largest_trainable, two.output_layer)

    def _count(self) -> Weights:
        network = self.build()
        four_bit = {id(m.weight): m for m in network.modules() if isinstance(m, FourBitLinear)}
        frozen, trainable = 0, [0]
        for parameter in network.parameters():
            if id(parameter) in four_bit:
                frozen += four_bit_bytes(parameter.numel(), four_bit[id(parameter)].double_quant)
            elif parameter.requires_grad:
                trainable.append(_bytes(parameter))
            else:
                frozen += _bytes(parameter)
        head = bare_model(network).get_output_embeddings()
        output_layer = _bytes(head.weight) if head is not None and head.weight.requires_grad else 0
        return Weights(frozen, sum(trainable), max(trainable), output_layer)

    def layer(self) -> Weights:
        """Return the bytes of one layer."""
        one, two = self.shallow(1).weights(), self.shallow(2).weights()
        return Weights(two.frozen - one.frozen, two.trainable - one.trainable, two.largest_trainable, 0)

    def adapter_bytes(self) -> int:
        """Return the bytes of the LoRA updates, without the score head of a reward model."""
        head = self.text.hidden_size * 4 if self.task == "SEQ_CLS" else 0
        return self.weights().trainable - head

    def frozen_adapter_bytes(self) -> int:
        """Return the same for a frozen adapter, which has the base's dtype, while a trained one is in float32."""
        return self.adapter_bytes() // 4 * self.element


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _fake_parameter(parameter: nn.Parameter) -> nn.Parameter:
    data = torch.empty(parameter.shape, dtype=parameter.dtype)
    return nn.Parameter(data, requires_grad=parameter.requires_grad)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the libraries' advice about initialising and loading: neither happens here."""
    logger = logging.getLogger("transformers")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)


def ilql_head_weights(width: int, vocabulary: int) -> Weights:
    """Return the bytes of ILQL's heads: Q heads and V head are trained, the targets are not."""
    with torch.device("meta"):
        heads = ILQLHeads(width, vocabulary)
    trained = [_bytes(p) for p in heads.parameters() if p.requires_grad]
    return Weights(sum(map(_bytes, heads.parameters())) - sum(trained), sum(trained), max(trained), 0)


# ---- 4 bits


def four_bit_bytes(weights: int, double_quant: bool) -> int:
    """Return the bytes of 4-bit weights with their scales.

    Every 64 weights share a scale (float32, or 8 bits with `double_quant`); 256 scales of 8 bits share one in float32.

    >>> four_bit_bytes(2**20, double_quant=False) * 8 / 2**20
    4.5
    """
    scales = -(-weights // BLOCK)
    return weights // 2 + (scales + -(-scales // DOUBLE_BLOCK) * 4 if double_quant else scales * 4)


class FourBitLinear(nn.Linear):
    """Replaces a frozen 4-bit layer: products run in `compute_dtype`, on weights that exist only meanwhile."""

    def __init__(self, n_in: int, n_out: int, bias: bool, nf4: NF4) -> None:
        super().__init__(n_in, n_out, bias, dtype=getattr(torch, nf4.compute_dtype))
        self.double_quant = nf4.double_quant
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the product, in the dtype of `x`."""
        out: Tensor = _Dequantised.apply(x.to(self.weight.dtype), self.weight)
        return (out if self.bias is None else out + self.bias).to(x.dtype)


class _Dequantised(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.weight = weight
        return x @ weight.clone().T

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ ctx.weight.clone(), None


def _put_in_four_bits(network: nn.Module, nf4: NF4) -> None:
    """Replace the layers that `BitsAndBytesConfig` replaces: all linear layers except the output layer."""
    for name, module in list(network.named_modules()):
        if name.split(".")[-1] in OUTPUT_LAYERS or not isinstance(module, nn.Linear | Conv1D):
            continue
        n_out, n_in = module.weight.shape if isinstance(module, nn.Linear) else reversed(module.weight.shape)
        network.set_submodule(name, FourBitLinear(n_in, n_out, module.bias is not None, nf4))
