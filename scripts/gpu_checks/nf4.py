"""4-bit weights on the device: the numbers they represent, the results computed with them, and a training step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from gpu_checks.agreement import one_step
from gpu_checks.comparing import as_near, distance
from gpu_checks.findings import Finding, NotMeasuredError, at_most
from gpu_checks.runs import small_rows
from gpu_checks.setting import Setting
from rlhf_lightning.models import NF4, LoRA, load_causal_lm, predict_tokens
from rlhf_lightning.models.forward import bare_model

TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
ROWS, LENGTH = 4, 32


def check(setting: Setting) -> Iterator[Finding]:
    """Check weights, log-probabilities and their gradients, and DPO's first loss."""
    if find_spec("bitsandbytes") is None:
        raise NotMeasuredError("bitsandbytes is not installed")
    folder = setting.llama("small")
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, setting.sizes.small.vocabulary, (ROWS, LENGTH), generator=generator)
    for name, dtype in TYPES.items():
        here, there = (four_bit(folder, name, device) for device in (setting.device, "cpu"))
        weights = four_bit_weights(there)
        for layer, found in four_bit_weights(here).items():
            if distance(found, weights[layer]) > torch.finfo(dtype).eps:
                yield at_most(f"{name}: weights of {layer}", distance(found, weights[layer]), torch.finfo(dtype).eps)
        exact = in_float64(folder, weights)
        results = zip(*(computed(network, ids) for network in (here, there, exact)), strict=True)
        for what, tensors in zip(("log-probabilities", "gradient of the adapter"), results, strict=True):
            yield as_near(f"{name}: {what}", *tensors, dtype)
    more = ["model/adapter=lora", "model/quantization=nf4", "model.quantization.compute_dtype=bfloat16"]
    rows = small_rows(setting, "dpo")
    captured = one_step(setting, "dpo", rows, setting.accelerator, "bf16-mixed", more)
    yield at_most("DPO's first loss less log 2", abs(float(captured.loss) - math.log(2)), 1e-6, "nats")


def four_bit(folder: Any, compute_dtype: Any, device: str) -> Any:
    """Return the network with an adapter whose weights are the same on every device."""
    torch.manual_seed(0)
    network = load_causal_lm(
        folder, dtype=compute_dtype, adapter=LoRA(rank=8), quantization=NF4(compute_dtype=compute_dtype)
    )
    return network.to(device)


def four_bit_weights(network: Any) -> dict[str, Tensor]:
    """Return the numbers that 4-bit weights represent, by layer."""
    import bitsandbytes as bnb

    return {
        name.replace(".base_layer", ""): bnb.functional.dequantize_4bit(
            layer.weight.data, layer.weight.quant_state
        ).float()
        for name, layer in bare_model(network).named_modules()
        if isinstance(layer, bnb.nn.Linear4bit)
    }


def in_float64(folder: Any, weights: dict[str, Tensor]) -> Any:
    """Return the same network with these weights, and no further rounding."""
    torch.manual_seed(0)
    network = load_causal_lm(folder, adapter=LoRA(rank=8))
    for name, weight in weights.items():
        layer = bare_model(network).get_submodule(name)
        layer.base_layer.weight.data.copy_(weight)
    return network.double()


def computed(network: Any, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return log-probabilities of all tokens but the first, and the gradient of their sum."""
    ids = ids.to(next(network.parameters()).device)
    flags = torch.ones_like(ids)
    flags[:, 0] = 0
    logprobs = predict_tokens(network, ids, flags).logprobs
    logprobs.sum().backward()
    gradients = [p.grad.double().cpu().flatten() for p in network.parameters() if p.grad is not None]
    return logprobs.detach(), torch.cat(gradients)
