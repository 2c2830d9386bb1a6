"""What a pass through a network keeps in memory, found by running the project's own code on fake tensors.

A pass is traced through networks with one and with two layers; every further layer adds what the second one added. The
peak may be in another part of the pass for a deep network than for a shallow one, so the parts (layers, output layer,
embeddings; forward and backward) are traced separately. Rows have their maximum length, so none is packed.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache

from rlhf_lightning.compat.torch_names import NUMBERS_ASKED, FakeTensors
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.forward import bare_model, hidden_states, output_head, predict_from_hidden
from rlhf_lightning.models.ilql_heads import ILQLHeads
from rlhf_lightning.models.value_head import ValueHead
from rlhf_lightning.planning.live_bytes import Alive, LiveBytes
from rlhf_lightning.planning.networks import Network
from rlhf_lightning.rollout import SamplingSettings
from rlhf_lightning.rollout.native import sample

Marks = list[tuple[str, Alive]]


@dataclass(frozen=True)
class Rows:
    """The rows of one forward pass: `count` rows of `length` tokens, of which the last `scored` are predicted."""

    count: int
    length: int
    scored: int


class Step(NamedTuple):
    """Bytes alive in a forward and backward pass, without weights and the weights' gradients."""

    forward: Alive  # at the peak of the forward pass
    backward: Alive
    kept: int  # at the end of the forward pass: what autograd saved


class Generation(NamedTuple):
    """Bytes alive while responses are sampled."""

    cache: int  # keys and values of prompts and responses
    prompts: Alive  # while the prompts are read, including their keys and values
    step: Alive  # in the last step, without the cache
    slots: int = 0  # while the prompts are read: copies for the further responses to each


@dataclass(frozen=True)
class Loss:
    """What the loss reads besides the rows' log-probabilities."""

    temperature: float = 1.0
    entropy: bool = False
    value: bool = False  # a value head on the hidden states
    q_heads: bool = False  # ILQL's heads on the hidden states
    on_cpu: bool = False  # logits come in smaller chunks on a CPU


@functools.lru_cache
def training_step(
    network: Network,
    rows: Rows,
    loss: Loss,
    autocast: torch.dtype | None = None,
    critics: tuple[Network, ...] = (),
    extra: Rows | None = None,
) -> Step:
    """Return the bytes of the forward and backward pass of one micro-batch.

    Args:
        autocast: the dtype that products run in, under a mixed precision.
        critics: further trained networks that read the same rows.
        extra: rows of a second loss in the same step (PPO-ptx).
    """

    def follow(depth: int) -> Marks:
        with _fake() as mode:
            modules = [part.fake(mode, depth) for part in (network, *critics)]
            with mode, LiveBytes(network.vocab_size) as live:
                for module in modules:
                    _watch_backward(module, live)
                with _autocast(autocast):
                    total = _loss(network, modules, rows, loss, live)
                    if extra is not None:
                        total = total + _token_loss(modules[0], extra, Loss(on_cpu=loss.on_cpu), live)[0]
                live.mark("forward")
                live.mark("kept")
                total.backward()
                live.mark("backward")
                return live.marks

    marks = _deepened(follow, network.layers)
    return Step(_peak(marks, "forward"), _peak(marks, "backward"), sum(_peak(marks, "kept")))


@functools.lru_cache
def forward_pass(
    network: Network, rows: Rows, loss: Loss, autocast: torch.dtype | None = None, frozen: bool = False
) -> Alive:
    """Return the peak of a pass without gradients; autocast caches copies of the weights that are not `frozen`."""

    def follow(depth: int) -> Marks:
        with _fake() as mode:
            module = network.fake(mode, depth)
            if frozen:
                module.requires_grad_(False)
            with mode, LiveBytes(network.vocab_size) as live, torch.no_grad(), _autocast(autocast):
                _loss(network, [module], rows, loss, live)
                live.mark("forward")
                return live.marks

    return _peak(_deepened(follow, network.layers), "forward")


@functools.lru_cache
def generation(
    network: Network, rows: int, prompt: int, response: int, autocast: torch.dtype | None, samples: int = 1
) -> Generation:
    """Return the bytes of sampling `response` tokens after prompts of `prompt` tokens, if no response ends early.

    Args:
        rows: number of responses; `samples` of them begin with the same prompt, which is read once.
    """
    length = prompt + response

    def follow(depth: int) -> Marks:
        with _fake() as mode:
            module = network.fake(mode, depth).eval()
            text = network.shallow(depth).text
            with mode, torch.no_grad(), _autocast(autocast):
                with LiveBytes(network.vocab_size) as prompts:
                    cache = _feed(module, rows // samples, prompt, DynamicCache(config=text), prompts)
                    prompts.mark("kept")
                    del cache
                with LiveBytes(network.vocab_size) as steps:
                    cache = _feed(module, rows, length - 1, DynamicCache(config=text), LiveBytes(0))
                    steps.peak = steps.now
                    steps.mark("before")
                    _feed(module, rows, 1, cache, steps, "step")
                    return prompts.marks + steps.marks

    marks = _deepened(follow, network.layers)
    before, step = _peak(marks, "before"), _peak(marks, "step")
    cache = sum(before) * length // max(length - 1, 1)
    after = Alive(step.logits, max(0, sum(step) - cache - step.logits))
    read = _peak(marks, "forward")
    if samples > 1:  # the first tokens of all responses are sampled together
        read = Alive(max(read.logits, step.logits), read.others)
    return Generation(cache, read, after, cache - cache // samples)


def _feed(
    module: Any, rows: int, tokens: int, cache: DynamicCache, live: LiveBytes, stage: str = "forward"
) -> DynamicCache:
    """Run one decoding step as the native engine does."""
    ids = torch.zeros(rows, tokens, dtype=torch.long)
    # Prompts are padded on the left, so there is a mask; transformers turns it into this form.
    mask = torch.ones(rows, 1, tokens, cache.get_seq_length() + tokens, dtype=torch.bool)
    out = bare_model(module).base_model(
        input_ids=ids, attention_mask=mask, position_ids=ids, past_key_values=cache, use_cache=True
    )
    live.mark(stage)
    sample(output_head(module)(out.last_hidden_state[:, -1]).float(), SamplingSettings(), None)
    live.mark(stage)
    return cache


def _loss(network: Network, modules: list[Any], rows: Rows, loss: Loss, live: LiveBytes) -> Tensor:
    if network.task == "SEQ_CLS":
        ids = torch.zeros(rows.count, rows.length, dtype=torch.long)
        return bare_model(modules[0]).score(hidden_states(modules[0], ids)[:, -1]).float().sum()
    total, hidden = _token_loss(modules[0], rows, loss, live)
    if loss.q_heads:
        actions = torch.zeros(len(hidden), dtype=torch.long)
        said = ILQLHeads(hidden.shape[-1], network.vocab_size)(hidden, actions)
        return total + said.q.sum() + said.values.sum() + said.q_logprobs.sum()
    for states in [_scored_hidden(module, rows, live)[0] for module in modules[1:]] or [hidden]:
        total = total + ValueHead(states.shape[-1])(states).sum() if loss.value else total
    return total


def _token_loss(module: Any, rows: Rows, loss: Loss, live: LiveBytes) -> tuple[Tensor, Tensor]:
    """Do the same as `predict_tokens` on rows whose last tokens are flagged: fake tensors hold no flags to read."""
    hidden, labels = _scored_hidden(module, rows, live)
    tokens = predict_from_hidden(module, hidden, labels, loss.temperature, loss.entropy, loss.on_cpu)
    total = tokens.logprobs.sum()
    return (total if tokens.entropy is None else total + tokens.entropy.sum()), hidden


def _scored_hidden(module: Any, rows: Rows, live: LiveBytes) -> tuple[Tensor, Tensor]:
    ids = torch.zeros(rows.count, rows.length, dtype=torch.long)
    first = rows.length - 1 - rows.scored
    hidden = hidden_states(module, ids)
    live.mark("forward")
    if hidden.requires_grad:
        hidden.register_hook(lambda gradient: live.mark("backward"))
    picked = hidden[:, first:-1].reshape(-1, hidden.shape[-1])
    return picked, ids[:, first + 1 :].reshape(-1)


def _watch_backward(module: Any, live: LiveBytes) -> None:
    """Drop the weights' gradients, counted separately, and mark where the backward pass leaves the layers."""
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(_drop_gradient)

    def mark_embeddings(embeddings: Any, inputs: Any, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda gradient: live.mark("backward"))

    bare_model(module).get_input_embeddings().register_forward_hook(mark_embeddings)


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None


def _autocast(dtype: torch.dtype | None) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast("cpu", dtype) if dtype is not None else contextlib.nullcontext()


@contextlib.contextmanager
def _fake() -> Iterator[FakeTensors]:
    try:
        yield FakeTensors()
    except NUMBERS_ASKED as error:
        raise UserError(
            f"model.path: this architecture cannot be planned: shapes in it depend on values ({error})"
        ) from error


def _deepened(follow: Callable[[int], Marks], layers: int) -> Marks:
    """Return the marks at the network's depth."""
    if layers <= 2:
        return follow(layers)
    marks = []
    for (stage, one), (_, two) in zip(follow(1), follow(2), strict=True):
        marks.append((stage, Alive(*(b + (layers - 2) * (b - a) for a, b in zip(one, two, strict=True)))))
    return marks


def _peak(marks: Marks, stage: str) -> Alive:
    return max((alive for name, alive in marks if name == stage), key=sum)
