"""A short check of every loaded network: our forward pass against its own plain one.

Our way omits padding masks, shares prompts, and runs the output layer only at some tokens. Whether a family allows that
depends on its code (an output layer with a multiplier, a network that reads later tokens, angles that depend on the
longest row), and no list of families is complete. So two rows of a few tokens are read both ways, and a network with
different results is refused. If its own output layer, run on our hidden states, gives the right numbers, that is used
instead (`forward.use_own_head`). The active kernels are part of our way.

The network is left unchanged: weights, buffers, training flags, random number generators, attention implementation.
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

from rlhf_lightning.compat.transformers_names import attention_of
from rlhf_lightning.errors import UserError, named
from rlhf_lightning.kernels import row_attention
from rlhf_lightning.kernels.use import kernels_of
from rlhf_lightning.models.forward import (
    backbone,
    bare_model,
    hidden_at,
    output_head,
    score_rows,
    scores_by_itself,
    use_own_head,
)
from rlhf_lightning.models.loaded_weights import largest
from rlhf_lightning.models.rounding import (
    OF_HEAD,
    ROUNDINGS,
    TOLERANCE,
    Difference,
    distance,
    noise_of,
    noise_of_scores,
    own_outputs,
    roundoff,
)

# Tokens of the rows. All begin with the same ones, so that a shared prompt is computed once.
LENGTHS, SHARED = (14, 11, 9, 7), 3
# From this many weights on, two rows are read, and the shorter one is compared.
LARGE = 10**9


class Plain(NamedTuple):
    """The results of a network's own forward pass on the check's rows, each alone and without padding."""

    rows: list[Tensor]  # [L] token ids of each row
    outputs: list[Tensor]  # [L, V] logits of each row, or [1, labels] of a classifier
    states: list[Tensor]  # [L, H] that its output layer read for them; empty if they are not accessible

    @property
    def compared(self) -> list[Tensor]:
        """Return the rows that have outputs."""
        return self.rows[-len(self.outputs) :]


def plain_forward(network: nn.Module) -> Plain:
    """Return the results of the network's own forward pass on the check's rows, one at a time.

    Raises:
        UserError: the network cannot read plain text, or its numbers are too large for its dtype.
    """
    large = sum(parameter.numel() for parameter in bare_model(network).parameters()) > LARGE
    rows: list[Tensor] = _attempt(network, partial(_rows, network, LENGTHS[:2] if large else LENGTHS))
    with untouched(network), torch.no_grad():
        network.eval()
        seen: list[Any] = []
        watch = backbone(network).register_forward_hook(lambda _, __, out: seen.append(_states_of(out)))
        try:
            outputs = [_attempt(network, partial(own_outputs, network, row)) for row in (rows[1:] if large else rows)]
        finally:
            watch.remove()
    _check_numbers(network, outputs)
    lengths = [len(row) for row in (rows[1:] if large else rows)]
    states = seen if [getattr(one, "shape", [0])[0] for one in seen] == lengths else []
    return Plain(rows, outputs, states)


def _check_numbers(network: nn.Module, outputs: list[Tensor]) -> None:
    """Raise UserError for outputs that are NaN or infinite; some families put -inf on tokens that do not exist."""
    if not any((out.isnan() | out.isposinf()).any() or out.isneginf().all() for out in outputs):
        return
    name, weight = max(bare_model(network).named_parameters(), key=lambda named: largest(named[1]))
    dtype = str(weight.dtype).removeprefix("torch.")
    raise UserError(
        f"{_family(network)}: it gives numbers that are not finite for a plain row of tokens; its largest weight is "
        f"{largest(weight):.2g} ({name}); take weights that have not blown up, or a dtype of a wider range than {dtype}"
    )


def _states_of(out: Any) -> Tensor | None:
    """Return the hidden states [L, H] of one row in a backbone's output."""
    states = out if isinstance(out, Tensor) else out[0]
    return states[0] if isinstance(states, Tensor) and states.dim() == 3 and len(states) == 1 else None


def check_causal_lm(network: nn.Module, plain: Plain) -> None:
    """Compare our log-probabilities with those of the plain forward pass.

    Raises:
        UserError: they differ. The message gives the family, the difference in nats and the tolerance.
    """
    with untouched(network), torch.no_grad():
        network.eval()
        for way in _ways(network):
            with way():
                hidden = _attempt(network, lambda: _ours(network, plain.rows))[-len(plain.outputs) :]
            backbone(network).hidden_width = hidden[0].shape[-1]
            found = _choose_head(network, hidden, plain)
            if not found.small:
                raise UserError(f"{_family(network)}: {_fault(network, plain)}; {found}. {_advice(network)}")


def _ways(network: nn.Module) -> list[Callable[[], contextlib.AbstractContextManager[None]]]:
    """Return the contexts in which our way is tried: rows this short would not be attended one by one otherwise."""
    by_row = "row_attention" in kernels_of(bare_model(network)).on
    return [contextlib.nullcontext, *([row_attention.always] if by_row else [])]


def _advice(network: nn.Module) -> str:
    """Return what to do if the numbers differ."""
    on = kernels_of(bare_model(network)).on
    without = f"Try model.kernels=none (on: {', '.join(sorted(on))}), or choose" if on else "Choose"
    return f"{without} another model: docs/models.md lists the families that work"


def _choose_head(network: nn.Module, hidden: list[Tensor], plain: Plain) -> Difference:
    """Select the output layer that gives the right numbers, the output embeddings or the model's own.

    If a few roundings explain neither difference, the noise of this network is measured.

    Returns:
        the remaining difference.
    """
    found = _better_head(network, hidden, plain, 0.0)
    if not found.small and found.allowed > TOLERANCE:
        found = _better_head(network, hidden, plain, noise_of(network, plain.compared))
    return found


def _better_head(network: nn.Module, hidden: list[Tensor], plain: Plain, noise: float) -> Difference:
    """Select the first of the two output layers whose difference is small; else return the first one's."""
    found = []
    for own in (False, True):
        use_own_head(network, own)
        tried = _try(lambda: _difference(network, hidden, plain, noise))
        if tried is not None and tried.small:
            return tried
        found += [] if tried is None else [tried]
    use_own_head(network, False)
    return found[0] if found else Difference(float("inf"), TOLERANCE)


def check_classifier(network: nn.Module, plain: Plain) -> None:
    """Compare our scores with those of the plain forward pass.

    A family whose scores are not a layer over the last token (an encoder pools its first one) is scored by its own
    forward pass, with a mask over the padding, if that gives the same scores as each row alone.

    Raises:
        UserError: they differ. The message gives the family, the difference of the scores and the tolerance.
    """
    theirs = torch.cat([logits[:1] for logits in plain.outputs]).float()
    size = float(theirs.abs().max())
    allowed, rounding = TOLERANCE * max(1.0, size), ROUNDINGS * roundoff(network, *plain.outputs) * size
    in_16_bits, allowed = rounding > allowed, max(rounding, allowed)
    gaps = []
    with untouched(network), torch.no_grad():
        network.eval()
        for own in (False, True):
            scores_by_itself(network, own)
            gap = max(_gap(network, plain.rows, theirs, way) for way in _ways(network))
            if in_16_bits and allowed < gap < float("inf"):
                allowed = max(allowed, noise_of_scores(network, plain.compared))
            if gap <= allowed:
                return
            gaps.append(gap)
    raise UserError(
        f"{_family(network)}: rows of a batch get different scores from each row alone in the model's own forward "
        f"pass; found a difference of {min(gaps):.2g}; must be at most {allowed:.1g}. {_advice(network)}"
    )


def _gap(
    network: nn.Module,
    rows: list[Tensor],
    theirs: Tensor,
    way: Callable[[], contextlib.AbstractContextManager[None]],
) -> float:
    """Return the largest difference between our scores and those of the plain forward pass."""
    with way():
        ours = _try(partial(_scores, network, rows))
    return float("inf") if ours is None else float((ours[-len(theirs) :] - theirs).abs().max())


def _scores(network: nn.Module, rows: list[Tensor]) -> Tensor:
    """Return the scores [B, labels] of the rows, read together."""
    lengths = torch.tensor([len(row) for row in rows], device=rows[0].device)
    ids = torch.stack([torch.cat([row, rows[0][len(row) :].flip(0)]) for row in rows])
    mask = torch.arange(ids.shape[1], device=ids.device) < lengths.unsqueeze(1)
    return score_rows(network, ids, mask.long(), torch.zeros_like(lengths)).float()


@contextlib.contextmanager
def untouched(network: nn.Module) -> Iterator[None]:
    """Restore the network and all random number generators afterwards."""
    training = {module: module.training for module in network.modules()}
    buffers = [(module, name, buffer, buffer.clone()) for module, name, buffer in _buffers(network)]
    body = backbone(network)
    attention = attention_of(body.config)
    states = random.getstate(), np.random.get_state()
    device = next(network.parameters()).device
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        if attention_of(body.config) != attention:
            body.set_attn_implementation(attention)
        with torch.no_grad():
            for module, name, buffer, value in buffers:
                buffer.copy_(value)
                setattr(module, name, buffer)
        for module, flag in training.items():
            module.training = flag


def _buffers(network: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    for module in network.modules():
        yield from ((module, name, buffer) for name, buffer in module.named_buffers(recurse=False))


def ordinary_tokens(network: nn.Module, count: int) -> Tensor:
    """Return ids [count] of tokens without a special meaning to the network, always the same."""
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


def _ours(network: nn.Module, rows: list[Tensor]) -> list[Tensor]:
    """Return the hidden states [L, H] of every row, read together, padded with ordinary tokens."""
    longest, lengths = rows[0], torch.tensor([len(row) for row in rows], device=rows[0].device)
    ids = torch.stack([torch.cat([row, longest[len(row) :].flip(0)]) for row in rows])
    wanted = torch.arange(len(longest), device=ids.device) < lengths.unsqueeze(1)
    states = hidden_at(network, ids, wanted, torch.full_like(lengths, SHARED))
    return [*states.split(lengths.tolist())]


def _difference(network: nn.Module, hidden: list[Tensor], plain: Plain, noise: float) -> Difference:
    """Return the worst difference of our log-probabilities, and of the output layer's on the model's own states."""
    head, logits = output_head(network), plain.outputs
    every = [
        distance(head(states), theirs, roundoff(network, states), noise=noise)
        for states, theirs in zip(hidden, logits, strict=True)
    ]
    every += [
        distance(head(states), theirs, roundoff(network, states), OF_HEAD)
        for states, theirs in zip(plain.states, logits, strict=False)
    ]
    return max(every, key=lambda one: one.nats / one.allowed if one.nats == one.nats else float("inf"))


def _fault(network: nn.Module, plain: Plain) -> str:
    """Describe what is wrong with a network whose numbers differ."""
    row, logits = plain.rows[-1], plain.outputs[-1]
    other = torch.cat([row[:-1], plain.rows[0][1:2]])
    changed = _try(lambda: distance(own_outputs(network, other)[:-1], logits[:-1], roundoff(network, logits)))
    if changed is not None and not changed.small:
        hint = " (config.is_decoder=true makes it one)" if hasattr(bare_model(network).config, "is_decoder") else ""
        return f"later tokens change the probabilities of earlier ones, so this is not a causal language model{hint}"
    return "rows of a batch get different log-probabilities from each row alone in the model's own forward pass"


def _family(network: nn.Module) -> str:
    bare = bare_model(network)
    return f"{named()}: {type(bare).__name__} (model_type {bare.config.model_type})"


def _attempt(network: nn.Module, action: Callable[[], Any]) -> Any:
    """Return the action's result; turn its error into a refusal of the family."""
    try:
        return action()
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = (str(error).strip() or "no reason given").splitlines()[0]
        raise UserError(
            f"{_family(network)}: it cannot read a plain row of tokens "
            f"({type(error).__name__}: {reason}). {_advice(network)}"
        ) from error


def _try(action: Callable[[], Any]) -> Any:
    """Return the action's result, or None if it cannot run."""
    try:
        return action()
    except torch.OutOfMemoryError:
        raise
    except Exception:
        return None
