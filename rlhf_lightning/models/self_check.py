"""A short check of every network that is loaded: our way through it against its own plain forward pass.

Our way leaves out padding masks, shares prompts, and runs the output layer at some tokens only. Whether a family allows
that depends on its code (an output layer with a multiplier, a network that reads later tokens, angles that depend on
the longest row), and no list of families is complete. So two rows of a few tokens are read both ways, and a network
that gives different numbers is refused. Where its own output layer, run on our hidden states, gives the right numbers,
that is used instead (`forward.use_own_head`).

The network is left as it was: weights, buffers, training flags, random number generators, attention implementation.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from rlhf_lightning.errors import UserError, named
from rlhf_lightning.models.forward import (
    backbone,
    bare_model,
    hidden_at,
    output_head,
    score_rows,
    scores_by_itself,
    use_own_head,
)

# Tokens of the rows. All begin with the same ones, so that a shared prompt is computed once.
LENGTHS, SHARED = (14, 11, 9, 7), 3
# Largest difference of log-probabilities in float32, in nats, the mean over the vocabulary at the worst token.
TOLERANCE = 1e-4
# Rounding errors of the log-probabilities, in units of roundoff * spread of the logits: a network of 30 layers has 1
# to 3 of them. For comparison, a missing soft cap or multiplier changes them by the spread itself.
ROUNDINGS = 16
# From so many weights on, two rows are read, and the shorter one is compared.
LARGE = 10**9


class Plain(NamedTuple):
    """What a network's own forward pass says of the check's rows, each alone and without padding."""

    rows: list[Tensor]  # [L] token ids of each row
    outputs: list[Tensor]  # [L, V] logits of each row, or [1, labels] of a classifier


def plain_forward(network: nn.Module) -> Plain:
    """The rows of the check read by the network's own forward pass, one at a time, as any user of it would.

    Raises:
        UserError: the network cannot read plain text.
    """
    large = sum(parameter.numel() for parameter in bare_model(network).parameters()) > LARGE
    rows: list[Tensor] = _attempt(network, partial(_rows, network, LENGTHS[:2] if large else LENGTHS))
    with untouched(network), torch.no_grad():
        network.eval()
        outputs = [_attempt(network, partial(_own, network, row)) for row in (rows[1:] if large else rows)]
    return Plain(rows, outputs)


def check_causal_lm(network: nn.Module, plain: Plain) -> None:
    """Compare log-probabilities of our path with those of the plain forward pass.

    Raises:
        UserError: they differ. The message has the family, the difference in nats and the tolerance.
    """
    with untouched(network), torch.no_grad():
        network.eval()
        hidden = _attempt(network, lambda: _ours(network, plain.rows))[-len(plain.outputs) :]
        backbone(network).hidden_width = hidden[0].shape[-1]
        found = _difference(network, hidden, plain)
        if not found.small:
            use_own_head(network)
            own = _try(lambda: _difference(network, hidden, plain))
            if own is not None and own.small:
                return
            use_own_head(network, False)
        noisy = not found.small and found.allowed > TOLERANCE and found.nats <= 4 * _noise(network, plain)
        if not found.small and not noisy:
            raise UserError(f"{_family(network)}: {_fault(network, plain)}; {found}. {_OTHER_FAMILY}")


def check_classifier(network: nn.Module, plain: Plain) -> None:
    """Compare scores of our path with those of the plain forward pass.

    A family whose scores are not a layer over the last token (an encoder pools its first one) is scored by its own
    forward pass, with a mask over the padding, if that gives what each row alone gets.

    Raises:
        UserError: they differ. The message has the family, the difference of the scores and the tolerance.
    """
    theirs = torch.cat([logits[:1] for logits in plain.outputs]).float()
    allowed = max(TOLERANCE, ROUNDINGS * roundoff(network, *plain.outputs) * max(1.0, float(theirs.abs().max())))
    gaps = []
    with untouched(network), torch.no_grad():
        network.eval()
        for own in (False, True):
            scores_by_itself(network, own)
            ours = _try(partial(_scores, network, plain.rows))
            gap = float("inf") if ours is None else float((ours[-len(theirs) :] - theirs).abs().max())
            if gap <= allowed:
                return
            gaps.append(gap)
    raise UserError(
        f"{_family(network)}: rows of a batch get other scores than each row alone in the model's own forward pass; "
        f"found a difference of {min(gaps):.2g}, allowed {allowed:.1g}. {_OTHER_FAMILY}"
    )


def _scores(network: nn.Module, rows: list[Tensor]) -> Tensor:
    """The scores [B, labels] of the rows, read together."""
    lengths = torch.tensor([len(row) for row in rows], device=rows[0].device)
    ids = torch.stack([torch.cat([row, rows[0][len(row) :].flip(0)]) for row in rows])
    mask = torch.arange(ids.shape[1], device=ids.device) < lengths.unsqueeze(1)
    return score_rows(network, ids, mask.long(), torch.zeros_like(lengths)).float()


_OTHER_FAMILY = "Choose another model: docs/models.md lists the families that are right"


class Difference(NamedTuple):
    """How far two ways of computing the same log-probabilities are apart."""

    nats: float
    allowed: float

    @property
    def small(self) -> bool:
        """Whether rounding explains it; NaN is not small."""
        return self.nats <= self.allowed

    def __str__(self) -> str:
        return f"found a difference of {self.nats:.2g} nats, allowed {self.allowed:.1g}"


def distance(ours: Tensor, theirs: Tensor, roundoff: float) -> Difference:
    """The difference of two sets of logits [L, V] as distributions, and how much of it rounding explains.

    The mean over the vocabulary of |log p - log q|, at the worst of the L tokens.
    """
    ours, theirs = ours.float(), theirs.float()
    nats = (ours.log_softmax(-1) - theirs.log_softmax(-1)).abs().mean(dim=-1).max()
    return Difference(float(nats), max(TOLERANCE, ROUNDINGS * roundoff * float(theirs.std(dim=-1).max())))


def roundoff(network: nn.Module, *results: Tensor) -> float:
    """Half the spacing of the coarsest floating-point numbers that the network computes with, relative to them."""
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


@contextlib.contextmanager
def untouched(network: nn.Module) -> Iterator[None]:
    """Leave the network and all random number generators as they are now."""
    training = {module: module.training for module in network.modules()}
    buffers = [(module, name, buffer, buffer.clone()) for module, name, buffer in _buffers(network)]
    body = backbone(network)
    attention = getattr(body.config, "_attn_implementation", None)
    states = random.getstate(), np.random.get_state()
    device = next(network.parameters()).device
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        if getattr(body.config, "_attn_implementation", None) != attention:
            body.set_attn_implementation(attention)
        with torch.no_grad():
            for module, name, buffer, value in buffers:
                buffer.copy_(value)
                module._buffers[name] = buffer
        for module, flag in training.items():
            module.training = flag


def _buffers(network: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    for module in network.modules():
        yield from ((module, name, buffer) for name, buffer in module.named_buffers(recurse=False))


def ordinary_tokens(network: nn.Module, count: int) -> Tensor:
    """Ids [count] of tokens that mean nothing special to the network, always the same."""
    config = bare_model(network).config
    text = config.get_text_config()
    embeddings: Any = bare_model(network).get_input_embeddings()
    known = min(int(text.vocab_size), int(getattr(embeddings, "num_embeddings", text.vocab_size)))
    special: set[Any] = set()
    for part in (config, text):
        ids = (value for name, value in part.to_dict().items() if name.endswith(("token_id", "token_index", "_index")))
        for value in ids:
            special |= set(value) if isinstance(value, list) else {value}
    ordinary = [token for token in range(min(known, 4096)) if token not in special] or [0]
    chosen = torch.randint(len(ordinary), (count,), generator=torch.Generator("cpu").manual_seed(0), device="cpu")
    return torch.tensor(ordinary, device="cpu")[chosen].to(embeddings.weight.device)


def _rows(network: nn.Module, lengths: Sequence[int]) -> list[Tensor]:
    rows = ordinary_tokens(network, sum(lengths)).split([*lengths])
    return [torch.cat([rows[0][:SHARED], row[SHARED:]]) for row in rows]


def _own(network: nn.Module, row: Tensor) -> Tensor:
    """The logits [L, V] of one row, as the model itself gives them."""
    ids = row.unsqueeze(0)
    logits: Tensor = bare_model(network)(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    return logits.flatten(0, -2)


def _ours(network: nn.Module, rows: list[Tensor]) -> list[Tensor]:
    """The hidden states [L, H] of every row, read together. The padding is ordinary tokens: nobody may read it."""
    longest, lengths = rows[0], torch.tensor([len(row) for row in rows], device=rows[0].device)
    ids = torch.stack([torch.cat([row, longest[len(row) :].flip(0)]) for row in rows])
    wanted = torch.arange(len(longest), device=ids.device) < lengths.unsqueeze(1)
    states = hidden_at(network, ids, wanted, torch.full_like(lengths, SHARED))
    return [*states.split(lengths.tolist())]


def _difference(network: nn.Module, hidden: list[Tensor], plain: Plain) -> Difference:
    head = output_head(network)
    pairs = zip(hidden, plain.outputs, strict=True)
    every = [distance(head(states), logits, roundoff(network, states)) for states, logits in pairs]
    return max(every, key=lambda one: one.nats / one.allowed if one.nats == one.nats else float("inf"))


def _noise(network: nn.Module, plain: Plain) -> float:
    """What one rounding of the input embeddings does to the plain log-probabilities, in nats.

    A mixture of experts in 16 bits answers a rounding with other experts, which no formula knows.
    """
    half = roundoff(network, plain.outputs[-1])
    embeddings: Any = bare_model(network).get_input_embeddings()
    hook = embeddings.register_forward_hook(lambda _, __, out: out * (1 + half * torch.randn_like(out).sign()))
    try:
        return distance(_own(network, plain.rows[-1]), plain.outputs[-1], half).nats
    finally:
        hook.remove()


def _fault(network: nn.Module, plain: Plain) -> str:
    """What is wrong, in words, of a network whose numbers differ."""
    row, logits = plain.rows[-1], plain.outputs[-1]
    other = torch.cat([row[:-1], plain.rows[0][1:2]])
    changed = _try(lambda: distance(_own(network, other)[:-1], logits[:-1], roundoff(network, logits)))
    if changed is not None and not changed.small:
        hint = " (config.is_decoder=true makes it one)" if hasattr(bare_model(network).config, "is_decoder") else ""
        return f"later tokens change the probabilities of earlier ones, so this is not a causal language model{hint}"
    return "rows of a batch get other log-probabilities than each row alone in the model's own forward pass"


def _family(network: nn.Module) -> str:
    bare = bare_model(network)
    return f"{named()}: {type(bare).__name__} (model_type {bare.config.model_type})"


def _attempt(network: nn.Module, action: Callable[[], Any]) -> Any:
    """What the action returns; its error as a refusal of the family."""
    try:
        return action()
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = (str(error).strip() or "no reason given").splitlines()[0]
        raise UserError(
            f"{_family(network)}: it cannot read a plain row of tokens "
            f"({type(error).__name__}: {reason}). {_OTHER_FAMILY}"
        ) from error


def _try(action: Callable[[], Any]) -> Any:
    """What the action returns, or None if it cannot run."""
    try:
        return action()
    except torch.OutOfMemoryError:
        raise
    except Exception:
        return None
