"""The engine that needs only the policy itself: sampling over a key-value cache with reusable slots."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_lightning.data import left_pad
from rlhf_lightning.kernels.fast_products import packed_weights
from rlhf_lightning.kernels.packing import packable
from rlhf_lightning.models.forward import backbone, bare_model, output_head
from rlhf_lightning.models.precision import held_casts
from rlhf_lightning.models.transfer import to_device
from rlhf_lightning.rollout.drawn import Drawn, Row
from rlhf_lightning.rollout.engine import Engine, Generation, SamplingSettings
from rlhf_lightning.rollout.slots import make_cache
from rlhf_lightning.rollout.uncached import UncachedDecoding, decoding_of

# Prompts wait until this share of the slots is free: reading them together is cheaper than one at a time.
REFILL_AT = 0.125
# Prompts are read together, padded, while the padding is at most this share of what is read, or this many tokens.
PADDING_SHARE = 0.1
PADDING_TOKENS = 64
# On a GPU the host checks which rows have ended only once in this many tokens: until then, ended rows are decoded in
# vain.
LOOK_EVERY = 8


class NativeEngine(Engine):
    """Samples with the trainer's own weights; positions restart at each prompt.

    At most `batch_size` prompts are decoded at a time, each with `samples_per_prompt` rows. A row that has ended leaves
    immediately (on a GPU when the host looks next, see LOOK_EVERY), and waiting prompts, longest first, take the free
    slots, each with all its rows: it is read once. Every step keeps the chosen tokens and their log-probabilities,
    never the [B, T, V] logits. With a `value_head` it also keeps that head's value of the state that each token is
    sampled from.
    """

    def __init__(
        self, pad_id: int, eos_ids: Sequence[int], batch_size: int | None = None, samples_per_prompt: int = 1
    ) -> None:
        self.pad_id = pad_id
        self.eos_ids = frozenset(eos_ids)
        self.batch_size, self.samples_per_prompt = batch_size, samples_per_prompt
        self.model: nn.Module | None = None
        self.decoding: type[Decoding] | type[UncachedDecoding] = Decoding
        self.value_head: nn.Module | None = None
        self.mask: Any = None

    def sync(self, model: nn.Module) -> None:
        """Keep a reference to the policy, whose weights are always current."""
        self.model, self.decoding = model, decoding_of(model)
        if self.mask is not None:
            from rlhf_lightning.rollout.masked import masked

            self.decoding = masked(self.decoding)

    def keep(self, value_head: nn.Module | None) -> bool:
        """Keep that head's values too: the weights that it samples with are the trainer's own."""
        self.value_head = value_head
        return True

    def restrict(self, mask: Any) -> bool:
        """Sample under the mask from the next `sync` on."""
        self.mask = mask
        return True

    @torch.no_grad()
    def generate(
        self, prompts: list[list[int]], settings: SamplingSettings, generator: torch.Generator | None = None
    ) -> Generation:
        """Return one response per prompt, in order. Adjacent equal prompts are several samples of one prompt."""
        assert self.model is not None, "call sync(model) first"
        rows = [Row(prompt) for prompt in prompts]
        # Packed weights are the policy's alone: the mask's copy would silently compute with them.
        packed = packed_weights(self.model, self.slots(len(rows))) if self.mask is None else contextlib.nullcontext()
        with _evaluating(self.model) as model, packed, held_casts(model):
            decoding = self.decoding(model, rows, self, settings, generator)
            with torch.inference_mode():  # spares every small operation some bookkeeping
                decoding.run()
        return self._collect(rows, decoding.drawn)

    def slots(self, rows: int) -> int:
        """Return how many of this many rows are decoded at a time."""
        return min((self.batch_size or rows) * self.samples_per_prompt, rows)

    def _collect(self, rows: list[Row], drawn: Drawn) -> Generation:
        """Return the responses, cut to the longest one and blanked after each row's end."""
        length = max(len(row.tokens) for row in rows)
        device = drawn.tokens.device
        facts = to_device([[len(row.tokens) for row in rows], [row.ended for row in rows]], device)
        valid = torch.arange(length, device=device) < facts[0].unsqueeze(1)
        return Generation(
            drawn.valid(drawn.tokens, valid, self.pad_id),
            valid.float(),
            drawn.valid(drawn.logprobs, valid, 0.0),
            facts[1].bool(),
            None if drawn.values is None else drawn.valid(drawn.values, valid, 0.0),
            None if drawn.allowed is None else drawn.allowed.unflatten(0, (len(rows), -1))[:, :length],
        )


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Switch dropout off and the cache on: activation checkpointing discards the cache in training mode."""
    training = model.training
    try:
        yield model.eval()
    finally:
        model.train(training)


class Decoding:
    """The rows of one call of `generate`: some wait, some are being decoded, the others have ended.

    On a CPU the host sees every token as soon as it is sampled. With a GPU it would have to wait until all queued work
    is done: so tokens stay on the device, the host looks once in LOOK_EVERY tokens, and it knows without looking when a
    row has its maximum length. The uniform number behind a token is then a function of (row, position), so that samples
    do not depend on when the host looks.
    """

    def __init__(
        self,
        model: nn.Module,
        rows: list[Row],
        engine: NativeEngine,
        settings: SamplingSettings,
        generator: torch.Generator | None,
    ) -> None:
        bare = bare_model(model)
        self.backbone, self.head, self.value_head = backbone(model), output_head(model), engine.value_head
        self.device: torch.device = next(bare.parameters()).device
        self.pad_id, self.eos_ids = engine.pad_id, engine.eos_ids
        self.settings, self.generator = settings, generator
        self.slots, self.samples_per_prompt = engine.slots(len(rows)), engine.samples_per_prompt
        self.drawn = Drawn(rows, settings.max_new_tokens, self.device, self.value_head is not None)
        # Longest last, to be popped; equal prompts are adjacent.
        self.waiting = sorted(rows, key=lambda row: (len(row.prompt), row.prompt))
        columns = len(self.waiting[-1].prompt) + settings.max_new_tokens - 1  # the last token is not read again
        config = bare.config.get_text_config()
        self.cache = make_cache(config, self.slots, columns)
        self.mask_as_is = packable(config, columns)
        self.rows: list[Row] = []
        self.last = torch.empty(0, dtype=torch.long, device=self.device)  # the newest token of each row
        self.places = torch.empty(0, dtype=torch.long, device=self.device)  # the position of each row's next token
        self.look_every = 1 if self.device.type == "cpu" else LOOK_EVERY
        self.unseen: list[tuple[list[Row], Tensor]] = []  # sampled since the host last looked
        self.uniform: Tensor | None = None
        if self.look_every > 1 and settings.temperature > 0:
            count, exact = len(self.drawn.tokens), _exact(self.device)
            self.uniform = torch.rand(count, 1, dtype=exact, device=self.device, generator=generator)
        self._starts: tuple[list[int], Tensor] = [], self.last

    def run(self) -> None:
        """Decode until all rows have ended."""
        while self.waiting or self.rows:
            if self.waiting and self._has_room():
                self._fill()
            else:
                self._step()

    def _has_room(self) -> bool:
        group = min(self.samples_per_prompt, len(self.waiting))
        return not self.rows or (self.cache.refills and self._free() >= max(group, REFILL_AT * self.slots))

    def _free(self) -> int:
        return self.slots - len(self.rows)

    def _fill(self) -> None:
        """Start rows in the free slots, all rows of a prompt together: read the prompts and sample first tokens."""
        whole = self._free() - self._free() % self.samples_per_prompt
        new = [self.waiting.pop() for _ in range(min(whole or self._free(), len(self.waiting)))]
        for group in alike(new) if self.cache.refills else [new]:
            self._read(group)
        self._look()

    def _read(self, new: list[Row]) -> None:
        number: dict[tuple[int, ...], int] = {}
        source = [number.setdefault(tuple(row.prompt), len(number)) for row in new]
        ids, attention = (to_device(x, self.device) for x in left_pad(list(number), self.pad_id))
        positions = (attention.cumsum(dim=1) - 1).clamp(min=0)
        begins = [self.drawn.place(row) for row in new]
        places, begin = to_device([source, begins], self.device)
        self.cache.add([len(row.prompt) for row in new], places)
        states = self._states(ids, attention, positions)
        self.cache.added()
        self.rows += new
        self.last = torch.cat([self.last, self._draw(states, new, begin, places)])
        self.places = torch.cat([self.places, begin + 1])

    def _step(self) -> None:
        """Sample one more token of every row."""
        self.cache.open_column()
        place = self.cache.place
        if self._starts[0] is not place.starts:
            self._starts = place.starts, to_device(place.starts, self.device).unsqueeze(1)
        starts = self._starts[1]
        attention = torch.arange(place.begin, place.end, device=self.device) >= starts
        # A finished mask, if the network accepts one: to make one, transformers reads values, which waits for a GPU.
        attention = attention[:, None, None] if self.mask_as_is else attention.long()
        states = self._states(self.last.unsqueeze(1), attention, place.end - 1 - starts)
        self.last = self._draw(states, self.rows, self.places)
        self.places = self.places + 1
        self._look()

    def _states(self, ids: Tensor, attention: Tensor, positions: Tensor, cache: Any = None) -> Tensor:
        """Return the states of the last tokens, [B, H], from which the next ones are sampled."""
        cache = self.cache if cache is None else cache
        out = self.backbone(
            input_ids=ids, attention_mask=attention, position_ids=positions, past_key_values=cache, use_cache=True
        )
        states: Tensor = out.last_hidden_state[:, -1]
        return states

    def _draw(self, states: Tensor, rows: list[Row], put: Tensor, places: Tensor | slice = slice(None)) -> Tensor:
        """Sample the next token of every row from the state at its position, and store it where `put` says."""
        uniform = None if self.uniform is None else self.uniform[put]
        chosen, logprobs = sample(self._logits(states, put, places), self.settings, self.generator, uniform)
        values = None if self.value_head is None else self.value_head(states)[places]
        self.drawn.put(rows, put, chosen, logprobs, values)
        self.unseen.append((list(rows), chosen))
        return chosen

    def _logits(self, states: Tensor, put: Tensor, places: Tensor | slice = slice(None)) -> Tensor:
        """Return the logits of the tokens that will be stored where `put` says."""
        return self.head(states).float()[places]

    def _look(self) -> None:
        """Read the tokens since the last look, if it is time; rows that have ended leave."""
        full = any(row.drawn == self.settings.max_new_tokens for row in self.rows)
        if len(self.unseen) < self.look_every and not full:
            return
        tokens = iter(torch.cat([chosen for _, chosen in self.unseen]).tolist())
        for rows, _ in self.unseen:
            for row in rows:
                row.read(next(tokens), self.eos_ids)
        self.unseen.clear()
        self._leave()

    def _leave(self) -> None:
        """Free the slots of rows that have ended, and move the last rows there, so that the first slots are in use."""
        live = [i for i, row in enumerate(self.rows) if not self._ended(row)]
        if len(live) == len(self.rows):
            return
        staying, last = set(live), [i for i in live if i >= len(live)]
        order = [i if i in staying else last.pop() for i in range(len(live))]
        self.cache.keep(order)
        self.rows = [self.rows[i] for i in order]
        kept = to_device(order, self.device, torch.long)
        self.last, self.places = self.last[kept], self.places[kept]

    def _ended(self, row: Row) -> bool:
        return row.ended or len(row.tokens) == self.settings.max_new_tokens


def alike(rows: list[Row]) -> list[list[Row]]:
    """Return rows, longest prompt first, in groups whose prompts are read together."""
    groups: list[list[Row]] = []
    read = padding = 0
    for row in rows:
        if groups and row.prompt == groups[-1][-1].prompt:
            groups[-1].append(row)
            continue
        longest = len(groups[-1][0].prompt) if groups else 0
        read, padding = read + longest, padding + longest - len(row.prompt)
        if not groups or padding > max(PADDING_TOKENS, PADDING_SHARE * read):
            groups.append([])
            read, padding = len(row.prompt), 0
        groups[-1].append(row)
    return groups


def sample(
    logits: Tensor, settings: SamplingSettings, generator: torch.Generator | None, uniform: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Sample one token per row: the first whose cumulative probability exceeds a uniform number.

    It takes one random number per row: exponential noise for every token (the Gumbel-max trick) would take most of the
    time on a CPU.

    Args:
        logits: [B, V] float32.
        uniform: [B, 1], the random numbers; None: drawn from `generator`.

    Returns:
        token ids [B] and their log-probabilities [B] in nats under the tempered, unfiltered distribution.
    """
    if settings.temperature == 0.0:
        chosen = logits.argmax(dim=-1)
        return chosen, logits.gather(1, chosen.unsqueeze(1)).squeeze(1) - logits.logsumexp(dim=-1)
    scaled = logits / settings.temperature
    scaled -= scaled.amax(dim=-1, keepdim=True)
    exact = _exact(logits.device)
    cumulative = _running_sum(_filtered(scaled, settings).exp(), exact)
    total = cumulative[:, -1:]
    if uniform is None:
        uniform = torch.rand(len(logits), 1, dtype=exact, device=logits.device, generator=generator)
    drawn = torch.searchsorted(cumulative, uniform * total, right=True).clamp_(max=logits.shape[1] - 1)
    log_sum = scaled.logsumexp(dim=-1, keepdim=True) if settings.filters else total.log().to(scaled.dtype)
    return drawn.squeeze(1), (scaled.gather(1, drawn) - log_sum).squeeze(1)


def _exact(device: torch.device) -> torch.dtype:
    """Return float64, as float32 sums near 1 lose tokens of probability below 1e-8; float32 on Apple's GPUs."""
    return torch.float32 if device.type == "mps" else torch.float64


def _filtered(logits: Tensor, settings: SamplingSettings) -> Tensor:
    """Return logits with everything outside top-k and the nucleus of mass top-p set to minus infinity."""
    if settings.top_k > 0:
        kth = logits.topk(min(settings.top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if settings.top_p < 1.0:
        ordered, order = logits.sort(dim=-1, descending=True)
        before = _running_sum(ordered.softmax(dim=-1)) - ordered.softmax(dim=-1)
        outside = torch.zeros_like(logits, dtype=torch.bool).scatter(1, order, before >= settings.top_p)
        logits = logits.masked_fill(outside, -torch.inf)
    return logits


def _running_sum(x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return cumulative sums [B, V] of numbers from 0 to 1.

    On CUDA, cumulative sums of floats depend on the order of threads, and deterministic algorithms refuse them.
    Integers have one sum in any order, so there the numbers are rounded to multiples of a unit that is as small as 64
    bits allow (2^-47 for a vocabulary of 32,000).
    """
    if not x.is_cuda:
        return x.cumsum(dim=-1, dtype=dtype)
    units = 2.0 ** (62 - x.shape[-1].bit_length())
    return (x.double() * units).long().cumsum(dim=-1).double().div_(units).to(dtype)
