"""From token ids to log-probabilities, through the backbone of any Hugging Face causal language model.

Shapes: B rows, L tokens of a padded row, P prompt tokens, T response tokens, K flagged tokens, H hidden, V vocabulary.

Rows are padded on the right here. Under causal attention a token sees nothing to its right, so no attention mask and no
position ids are needed, whatever the family (GPT-2 learns positions, Llama rotates them), and padding is never read. If
it saves work, rows are packed (`kernels.packing`). The language-model head runs at flagged positions only, so [B, L, V]
is never built.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf_lightning.functional import chunked_token_logprobs
from rlhf_lightning.kernels.packing import pack, packable
from rlhf_lightning.kernels.use import kernels_of
from rlhf_lightning.models.limits import check_row
from rlhf_lightning.models.sharding import as_forward

# Logits in memory at a time: 128 MiB of float32 values, enough to keep a GPU busy; a CPU needs a quarter of that.
LOGITS_IN_FLIGHT = 2**25
LOGITS_IN_FLIGHT_ON_CPU = 2**23


class TokenPredictions(NamedTuple):
    """The model's predictions of the K flagged tokens, in row-major order."""

    logprobs: Tensor  # [K] nats
    entropy: Tensor | None  # [K] nats
    hidden: Tensor  # [K, H], the state that each token is predicted from


def bare_model(model: nn.Module) -> Any:
    """Return the Hugging Face model inside a PEFT wrapper (its adapters stay active), or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]


def backbone(model: nn.Module) -> Any:
    """Return the network without its head. In a few families that is not `base_model`."""
    bare = bare_model(model)
    if bare.base_model is bare and bare.get_output_embeddings() is not None:
        return next((child for child in bare.children() if isinstance(child, PreTrainedModel)), bare)
    return bare.base_model


def hidden_states(model: nn.Module, input_ids: Tensor) -> Tensor:
    """Return the last hidden states [B, L, H] of the backbone, without the language-model head."""
    check_row(bare_model(model), input_ids.shape[1])
    return backbone(model)(input_ids=input_ids, use_cache=False).last_hidden_state


def hidden_width(model: nn.Module) -> int:
    """Return the width H of the last hidden states. In a few families (OPT-350m) it differs from the configuration."""
    known = getattr(backbone(model), "hidden_width", None)
    return int(known or bare_model(model).config.get_text_config().hidden_size)


def hidden_at(model: nn.Module, input_ids: Tensor, wanted: Tensor, shared: Tensor) -> Tensor:
    """Return the last hidden states [K, H] of the wanted tokens of right-padded rows, in row-major order.

    Tokens after a row's last wanted one are not computed, and what rows share is computed once if that is worthwhile.

    Args:
        input_ids: [B, L] token ids.
        wanted: [B, L] bool, K of them True.
        shared: [B], how many tokens at the start of a row may be shared with rows that begin with the same ones.
    """
    places = torch.arange(1, wanted.shape[1] + 1, device=wanted.device)
    lengths = (wanted * places).amax(dim=1)
    bare = bare_model(model)
    check_row(bare, input_ids.shape[1])
    kernels = kernels_of(bare).on
    if "packing" in kernels and packable(bare.config.get_text_config(), input_ids.shape[1]):
        packed = pack(input_ids, lengths, torch.minimum(shared, lengths), wanted, kernels)
        if packed is not None:
            return packed.states(backbone(model))
    return hidden_states(model, input_ids)[wanted]


def states_before(model: nn.Module, input_ids: Tensor, flags: Tensor) -> Tensor:
    """Return the states [K, H] that flagged tokens of rows [B, L] are predicted from, one token earlier."""
    flags = flags.bool()
    previous = torch.cat([flags[:, 1:], torch.zeros_like(flags[:, :1])], dim=1)
    return hidden_at(model, input_ids, previous, shared=flags.int().argmax(dim=1))


def output_head(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return the map from hidden states to logits, including the scaling and soft-capping of some families.

    A guided model (see `models.guidance`) adds its values to them.
    """
    bare = bare_model(model)
    head, guidance = _plain_head(bare), getattr(bare, "guidance", None)
    return head if guidance is None else lambda hidden: guidance(head(hidden), hidden)


def _plain_head(bare: Any) -> Callable[[Tensor], Tensor]:
    if uses_own_head(bare):
        return partial(_own_head, bare)
    linear, config = bare.get_output_embeddings(), bare.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1.0  # Cohere multiplies
    scale /= getattr(config, "logits_scaling", None) or 1.0  # Granite divides
    cap = getattr(config, "final_logit_softcapping", None)  # Gemma 2

    def head(hidden: Tensor) -> Tensor:
        logits = linear(hidden)
        if scale != 1.0:
            logits = logits * scale
        return cap * torch.tanh(logits / cap) if cap else logits

    return head


def output_width(model: nn.Module) -> int:
    """Return the number of logits per token."""
    return int(bare_model(model).get_output_embeddings().weight.shape[0])


def use_own_head(model: nn.Module, own: bool = True) -> None:
    """Compute logits with the model's own forward pass instead of its output embeddings: for heads that do more."""
    bare_model(model).own_head = own


def uses_own_head(model: nn.Module) -> bool:
    """Return whether logits come from the model's own forward pass."""
    return bool(getattr(bare_model(model), "own_head", False))


class _States(dict[str, Any]):
    """Replaces a backbone's output: the hidden states, and None for everything else."""

    def __getattr__(self, name: str) -> Any:
        return None if name.startswith("_") else self.get(name)

    def __getitem__(self, key: Any) -> Any:
        return self["last_hidden_state"] if key == 0 else super().__getitem__(key)


def _own_head(bare: Any, hidden: Tensor) -> Tensor:
    """Return logits [K, V] of hidden states [K, H] by the model's forward pass, with these as its backbone's."""
    body, ids = backbone(bare), torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
    before = body.__dict__.get("forward")
    body.forward = lambda *args, **kwargs: _States(last_hidden_state=hidden.unsqueeze(0))
    try:
        logits: Tensor = bare.forward(input_ids=ids, use_cache=False).logits
    finally:
        del body.forward
        if before is not None:
            body.forward = before
    return logits[0]


def last_hidden(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor, prompt_lengths: Tensor | None = None
) -> Tensor:
    """Return the hidden state [B, H] of the last valid token of right-padded rows [B, L]."""
    lengths = attention_mask.sum(dim=1, keepdim=True).clamp(min=1)  # an empty text is scored at its padding
    last = torch.arange(1, input_ids.shape[1] + 1, device=input_ids.device) == lengths
    shared = torch.zeros_like(lengths[:, 0]) if prompt_lengths is None else prompt_lengths
    return hidden_at(model, input_ids, last, shared)


def scores_by_itself(classifier: nn.Module, own: bool) -> None:
    """Score with the classifier's own forward pass (or stop doing so) instead of a layer over the last valid token."""
    bare_model(classifier).own_pooling = own


def score_rows(
    classifier: nn.Module, input_ids: Tensor, attention_mask: Tensor, prompt_lengths: Tensor | None = None
) -> Tensor:
    """Return the scores [B, labels] of right-padded rows [B, L]."""
    bare = bare_model(classifier)
    if not getattr(bare, "own_pooling", False):
        scores: Tensor = bare.score(last_hidden(classifier, input_ids, attention_mask, prompt_lengths))
        return scores
    pad = bare.config.get_text_config().pad_token_id or 0
    ids = input_ids.masked_fill(attention_mask == 0, pad)
    return bare(input_ids=ids, attention_mask=attention_mask).logits


def predict_tokens(
    model: nn.Module,
    input_ids: Tensor,
    flags: Tensor,
    temperature: float = 1.0,
    with_entropy: bool = False,
    allowed: Tensor | None = None,
) -> TokenPredictions:
    """Return log p(token | the tokens before it) for the flagged tokens of right-padded rows.

    Args:
        input_ids: [B, L] token ids.
        flags: [B, L], nonzero on the wanted tokens. The first column cannot be predicted and must be 0.
        temperature: divides the logits.
        allowed: [K, ceil(V / 8)], the tokens over which to renormalise, as bits; None: all.

    Returns:
        log-probabilities [K] in nats, entropies [K] if asked for, and the hidden states [K, H] they come from.
    """
    return as_forward(model, _predict_tokens)(input_ids, flags, temperature, with_entropy, allowed)


def _predict_tokens(
    model: nn.Module,
    input_ids: Tensor,
    flags: Tensor,
    temperature: float,
    with_entropy: bool,
    allowed: Tensor | None,
) -> TokenPredictions:
    wanted = flags.bool()
    hidden = states_before(model, input_ids, wanted)
    labels = flagged(input_ids, wanted, len(hidden))
    return predict_from_hidden(model, hidden, labels, temperature, with_entropy, allowed=allowed)


def predict_from_hidden(
    model: nn.Module,
    hidden: Tensor,
    labels: Tensor,
    temperature: float = 1.0,
    with_entropy: bool = False,
    on_cpu: bool | None = None,
    allowed: Tensor | None = None,
) -> TokenPredictions:
    """Return log p(label | hidden state) of hidden states [K, H] and labels [K], in chunks of LOGITS_IN_FLIGHT logits.

    `on_cpu` overrides the states' device, for placeholder tensors.
    """
    bare = bare_model(model)
    on_cpu = hidden.is_cpu if on_cpu is None else on_cpu
    logprobs, entropy = chunked_token_logprobs(
        *(hidden, output_head(model), labels, temperature),
        chunk_size=tokens_at_once(
            bare.config.get_text_config().vocab_size, hidden.is_cpu if on_cpu is None else on_cpu
        ),
        with_entropy=with_entropy,
        frozen_head=not any(p.requires_grad for p in _head_parameters(bare)),
        allowed=allowed,
    )
    return TokenPredictions(logprobs, entropy, hidden)


def tokens_at_once(vocabulary: int, on_cpu: bool) -> int:
    """Return how many tokens' logits to have in memory at a time."""
    return max(64, (LOGITS_IN_FLIGHT_ON_CPU if on_cpu else LOGITS_IN_FLIGHT) // vocabulary)


def _head_parameters(bare: Any) -> Iterable[nn.Parameter]:
    return bare.parameters() if uses_own_head(bare) else bare.get_output_embeddings().parameters()


def right_padded(prompt_ids: Tensor, prompt_mask: Tensor, response_ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Join left-padded prompts [B, P] and right-padded responses [B, T] into right-padded rows.

    Returns:
        ids [B, L] and flags [B, L], 1 on response tokens; L is the longest row of the batch.
    """
    ids = torch.cat([prompt_ids, response_ids], dim=1)
    flags = torch.cat([torch.zeros_like(prompt_ids, dtype=mask.dtype), mask], dim=1)
    shift = prompt_mask.shape[1] - prompt_mask.sum(dim=1, keepdim=True).long()
    valid = prompt_mask.shape[1] - shift + mask.sum(dim=1, keepdim=True).long()
    index = torch.arange(int(valid.max()), device=ids.device) + shift
    inside = torch.arange(index.shape[1], device=ids.device) < valid
    index = index.clamp(max=ids.shape[1] - 1)
    return ids.gather(1, index), flags.gather(1, index) * inside


def scatter_tokens(values: Tensor, mask: Tensor) -> Tensor:
    """Return K values, given in row-major order, placed where `mask` [B, T] is nonzero; 0 elsewhere."""
    out = values.new_zeros(mask.shape)
    if values.is_cpu:
        return out.masked_scatter(mask.bool(), values)
    return out.view(-1).index_copy(0, _places(mask, len(values)), values).view(mask.shape)


def flagged(x: Tensor, flags: Tensor, count: int) -> Tensor:
    """Return x[flags] in row-major order; with a known count, the GPU need not be asked for it."""
    return x[flags] if x.is_cpu else x.flatten()[_places(flags, count)]


def _places(flags: Tensor, count: int) -> Tensor:
    """Return the positions [count] of the flags in the flattened tensor, in order."""
    return flags.flatten().bool().to(torch.uint8).argsort(descending=True, stable=True)[:count]


def response_logprobs(
    model: nn.Module,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    response_ids: Tensor,
    mask: Tensor,
    temperature: float = 1.0,
    allowed: Tensor | None = None,
) -> Tensor:
    """Return log-probabilities [B, T] in nats of the response tokens under `model`; 0 outside the mask.

    `allowed` [B, T, ceil(V / 8)] restricts the distributions, as in `predict_tokens`.
    """
    ids, flags = right_padded(prompt_ids, prompt_mask, response_ids, mask)
    bits = None if allowed is None else allowed[mask.bool()]
    return scatter_tokens(predict_tokens(model, ids, flags, temperature, allowed=bits).logprobs, mask)


def sequence_logprobs(model: nn.Module, input_ids: Tensor, completion_mask: Tensor) -> Tensor:
    """Return the sum of the completion's token log-probabilities, [B], in nats."""
    return scatter_tokens(predict_tokens(model, input_ids, completion_mask).logprobs, completion_mask).sum(dim=1)
