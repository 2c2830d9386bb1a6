"""The effect of rounding on a network's outputs, by formula and by measurement."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rlhf_lightning.models.forward import bare_model

# Largest difference of log-probabilities in float32, in nats, the mean over the vocabulary at the worst token.
TOLERANCE = 1e-4
# Rounding errors of the log-probabilities in 16 bits, in units of roundoff * spread of the logits: correct networks of
# a few layers show 0 to 3 of them, networks that read later tokens more than 100.
ROUNDINGS = 4
# Deep networks and mixtures of experts round more than that (30 layers: 10 to 15 units), which no formula predicts. For
# them it is measured: their layers' rounding adds up to 0.6 to 1.3 times the effect of one rounding of their input.
OF_INPUT, DRAWS = 3, 3
# The same for the output layer alone, on the states that the model's own forward pass gives it: it rounds once or
# twice, and a missing soft cap or multiplier shows however much the layers below round.
OF_HEAD = 1


class Difference(NamedTuple):
    """The distance between two ways of computing the same log-probabilities."""

    nats: float
    allowed: float

    @property
    def small(self) -> bool:
        """Return whether rounding explains it; NaN is not small."""
        return self.nats <= self.allowed

    def __str__(self) -> str:
        return f"found a difference of {self.nats:.2g} nats; must be at most {self.allowed:.1g}"


def distance(
    ours: Tensor, theirs: Tensor, roundoff: float, roundings: float = ROUNDINGS, noise: float = 0.0
) -> Difference:
    """Return the difference of two sets of logits [L, V] as distributions, and how much of it rounding explains.

    It is the mean over the vocabulary of |log p - log q|, at the worst of the L tokens. `noise` is the least that is
    allowed.
    """
    ours, theirs = ours.float(), theirs.float()
    nats = (ours.log_softmax(-1) - theirs.log_softmax(-1)).abs().mean(dim=-1).max()
    return Difference(float(nats), max(TOLERANCE, noise, roundings * roundoff * float(theirs.std(dim=-1).max())))


def roundoff(network: nn.Module, *results: Tensor) -> float:
    """Return half the relative spacing of the coarsest floating-point numbers that the network computes with."""
    kinds = {parameter.dtype for parameter in network.parameters() if parameter.is_floating_point()}
    kinds |= {result.dtype for result in results}
    kinds |= {module.compute_dtype for module in network.modules() if getattr(module, "compute_dtype", None)}  # type: ignore[misc]
    halves = [torch.finfo(kind).eps / 2 for kind in kinds if isinstance(kind, torch.dtype)]
    device = next(network.parameters()).device.type
    if torch.is_autocast_enabled(device):
        halves.append(torch.finfo(torch.get_autocast_dtype(device)).eps / 2)
    if device == "cuda" and torch.get_float32_matmul_precision() != "highest":
        halves.append(2.0**-11)  # TensorFloat-32
    return max(halves)


def own_outputs(network: nn.Module, row: Tensor) -> Tensor:
    """Return the logits [L, V] of one row [L], or the scores [1, labels], as the model itself computes them."""
    ids = row.unsqueeze(0)
    logits: Tensor = bare_model(network)(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    return logits.flatten(0, -2)


def noise_of(network: nn.Module, rows: Sequence[Tensor]) -> float:
    """Return how far rounding may move the log-probabilities of rows [L], in nats, as measured.

    That is OF_INPUT times the worst effect of one rounding of the input embeddings, in evaluation mode.
    """
    return OF_INPUT * max(distance(after, before, 0.0).nats for before, after in _rounded_once(network, rows))


def noise_of_scores(network: nn.Module, rows: Sequence[Tensor]) -> float:
    """Return the same for a classifier's scores."""
    return OF_INPUT * max(float((after - before)[:1].abs().max()) for before, after in _rounded_once(network, rows))


def _rounded_once(network: nn.Module, rows: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the model's own outputs for a row, and those after a rounding of its input, DRAWS times for each row."""
    embeddings: Any = bare_model(network).get_input_embeddings()
    for row in rows:
        before = own_outputs(network, row)
        half = roundoff(network, before)
        hook = embeddings.register_forward_hook(lambda _, __, out, half=half: _rounded(out, half))
        try:
            for _ in range(DRAWS):
                yield before, own_outputs(network, row)
        finally:
            hook.remove()


def _rounded(out: Tensor, half: float) -> Tensor:
    return out * (1 + half * torch.randn_like(out).sign())
