"""The engine that needs nothing but the policy itself: sampling over a key-value cache whose slots are used again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from rlhf_lightning.data import left_pad
from rlhf_lightning.models.cpu_products import packed_weights
from rlhf_lightning.models.forward import backbone, bare_model, output_head
from rlhf_lightning.models.packing import packable
from rlhf_lightning.rollout.engine import Generation, SamplingSettings
from rlhf_lightning.rollout.slots import make_cache
from rlhf_lightning.rollout.uncached import UncachedDecoding, decoding_of

# Prompts wait until this share of the slots is free: those of one forward pass cost less than one at a time.
REFILL_AT = 0.125
# Prompts are read together, padded, while the padding is at most this share of what is read, or so many tokens.
PADDING_SHARE = 0.1
PADDING_TOKENS = 64


class NativeEngine:
    """Sample with the trainer's own weights; positions restart at each prompt.

    At most `batch_size` rows are decoded at a time. A row that has ended leaves at once, and waiting prompts, the
    longest first, take the free slots. A prompt is read once for all its samples that start together.
    Every step keeps the chosen tokens and their log-probabilities, never the [B, T, V] logits. With a `value_head` it
    keeps that head's value of the state each token is drawn from as well.
    """

    def __init__(self, pad_id: int, eos_ids: Sequence[int], batch_size: int | None = None) -> None:
        self.pad_id = pad_id
        self.eos_ids = frozenset(eos_ids)
        self.batch_size = batch_size
        self.model: nn.Module | None = None
        self.decoding: type[Decoding] | type[UncachedDecoding] = Decoding
        self.value_head: nn.Module | None = None

    def sync(self, model: nn.Module) -> None:
        """Keep a reference to the policy: its weights are always current."""
        self.model, self.decoding = model, decoding_of(model)

    @torch.no_grad()
    def generate(
        self, prompts: list[list[int]], settings: SamplingSettings, generator: torch.Generator | None = None
    ) -> Generation:
        """One response a prompt, in the order of the prompts."""
        assert self.model is not None, "call sync(model) first"
        rows = [Row(prompt) for prompt in prompts]
        slots = min(self.batch_size or len(rows), len(rows))
        with _evaluating(self.model) as model, packed_weights(model, slots):
            decoding = self.decoding(model, rows, self, settings, generator)
            with torch.inference_mode():  # spares every small operation some bookkeeping
                decoding.run()
        return self._collect(rows, decoding.device)

    def _collect(self, rows: list[Row], device: torch.device) -> Generation:
        length = max(len(row.tokens) for row in rows)
        missing = [length - len(row.tokens) for row in rows]
        tokens = [row.tokens + [self.pad_id] * n for row, n in zip(rows, missing, strict=True)]
        logprobs = [row.logprobs + [0.0] * n for row, n in zip(rows, missing, strict=True)]
        values = [row.values + [0.0] * n for row, n in zip(rows, missing, strict=True)]
        ended = [row.tokens[-1] in self.eos_ids for row in rows]
        mask = [[1.0] * (length - n) + [0.0] * n for n in missing]
        return Generation(
            torch.tensor(tokens, device=device),
            torch.tensor(mask, dtype=torch.float32, device=device),
            torch.tensor(logprobs, dtype=torch.float32, device=device),
            torch.tensor(ended, device=device),
            None if self.value_head is None else torch.tensor(values, dtype=torch.float32, device=device),
        )


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Without dropout, and with a cache: activation checkpointing throws it away in training mode."""
    training = model.training
    try:
        yield model.eval()
    finally:
        model.train(training)


@dataclass
class Row:
    """A prompt and the response so far."""

    prompt: list[int]
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)


class Decoding:
    """The rows of one call of `generate`: some wait, some are decoded, the others have ended."""

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
        self.slots = min(engine.batch_size or len(rows), len(rows))
        # The longest last, to be popped; equal prompts side by side.
        self.waiting = sorted(rows, key=lambda row: (len(row.prompt), row.prompt))
        columns = len(self.waiting[-1].prompt) + settings.max_new_tokens - 1  # the last token is not read again
        config = bare.config.get_text_config()
        self.cache = make_cache(config, self.slots, columns)
        self.mask_as_is = packable(config, columns)
        self.rows: list[Row] = []
        self.last = torch.empty(0, dtype=torch.long, device=self.device)  # the newest token of each row

    def run(self) -> None:
        """Decode until all rows have ended."""
        while self.waiting or self.rows:
            if self.waiting and self._has_room():
                self._fill()
            else:
                self._step()

    def _has_room(self) -> bool:
        free = self.slots - len(self.rows)
        return not self.rows or (self.cache.refills and free >= max(1.0, REFILL_AT * self.slots))

    def _fill(self) -> None:
        """Start rows in all free slots: read their prompts and draw their first tokens."""
        free = self.slots - len(self.rows)
        new = [self.waiting.pop() for _ in range(min(free, len(self.waiting)))]
        for group in alike(new) if self.cache.refills else [new]:
            self._read(group)
        self._leave()

    def _read(self, new: list[Row]) -> None:
        number: dict[tuple[int, ...], int] = {}
        source = [number.setdefault(tuple(row.prompt), len(number)) for row in new]
        ids, attention = (x.to(self.device) for x in left_pad(list(number), self.pad_id))
        positions = (attention.cumsum(dim=1) - 1).clamp(min=0)
        places = torch.tensor(source, device=self.device)
        self.cache.add([len(row.prompt) for row in new], places)
        states = self._states(ids, attention, positions)
        self.cache.added()
        self.rows += new
        self.last = torch.cat([self.last, self._draw(states, new, places)])

    def _step(self) -> None:
        """One more token of every row."""
        self.cache.open_column()
        place = self.cache.place
        starts = torch.tensor(place.starts, device=self.device).unsqueeze(1)
        attention = torch.arange(place.begin, place.end, device=self.device) >= starts
        # A finished mask, where one is taken: to make one, transformers looks at the numbers, which waits for a GPU.
        attention = attention[:, None, None] if self.mask_as_is else attention.long()
        states = self._states(self.last.unsqueeze(1), attention, place.end - 1 - starts)
        self.last = self._draw(states, self.rows)
        self._leave()

    def _states(self, ids: Tensor, attention: Tensor, positions: Tensor) -> Tensor:
        """Of the last tokens [B, H]: what the next ones are drawn from."""
        out = self.backbone(
            input_ids=ids, attention_mask=attention, position_ids=positions, past_key_values=self.cache, use_cache=True
        )
        states: Tensor = out.last_hidden_state[:, -1]
        return states

    def _draw(self, states: Tensor, rows: list[Row], places: Tensor | slice = slice(None)) -> Tensor:
        """The next token of every row, drawn from the state at its place."""
        chosen, logprobs = sample(self.head(states).float()[places], self.settings, self.generator)
        for row, token, logprob in zip(rows, chosen.tolist(), logprobs.tolist(), strict=True):
            row.tokens.append(token)
            row.logprobs.append(logprob)
        if self.value_head is not None:
            for row, value in zip(rows, self.value_head(states)[places].tolist(), strict=True):
                row.values.append(value)
        return chosen

    def _leave(self) -> None:
        """Rows that have ended give up their slots; the last rows move there, so that the first slots are in use."""
        live = [i for i, row in enumerate(self.rows) if not self._ended(row)]
        if len(live) == len(self.rows):
            return
        staying, last = set(live), [i for i in live if i >= len(live)]
        order = [i if i in staying else last.pop() for i in range(len(live))]
        self.cache.keep(order)
        self.rows = [self.rows[i] for i in order]
        self.last = self.last[torch.tensor(order, dtype=torch.long, device=self.device)]

    def _ended(self, row: Row) -> bool:
        return row.tokens[-1] in self.eos_ids or len(row.tokens) == self.settings.max_new_tokens


def alike(rows: list[Row]) -> list[list[Row]]:
    """Rows, the longest prompt first, in groups whose prompts are read together."""
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


def sample(logits: Tensor, settings: SamplingSettings, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Draw one token per row: the first whose cumulative probability exceeds a uniform number.

    One random number per row: exponential noise for every token (the Gumbel-max trick) takes most of the time on a CPU.

    Args:
        logits: [B, V] float32.

    Returns:
        token ids [B] and their log-probabilities [B] in nats under the tempered, unfiltered distribution.
    """
    if settings.temperature == 0.0:
        chosen = logits.argmax(dim=-1)
        return chosen, logits.gather(1, chosen.unsqueeze(1)).squeeze(1) - logits.logsumexp(dim=-1)
    scaled = logits / settings.temperature
    scaled -= scaled.amax(dim=-1, keepdim=True)
    # In float32 a sum near 1 would swallow tokens of probability below 1e-8; Apple's GPUs have nothing better.
    exact = torch.float32 if logits.device.type == "mps" else torch.float64
    cumulative = _running_sum(_filtered(scaled, settings).exp(), exact)
    total = cumulative[:, -1:]
    uniform = torch.rand(len(logits), 1, dtype=exact, device=logits.device, generator=generator)
    drawn = torch.searchsorted(cumulative, uniform * total, right=True).clamp_(max=logits.shape[1] - 1)
    log_sum = scaled.logsumexp(dim=-1, keepdim=True) if settings.filters else total.log().to(scaled.dtype)
    return drawn.squeeze(1), (scaled.gather(1, drawn) - log_sum).squeeze(1)


def _filtered(logits: Tensor, settings: SamplingSettings) -> Tensor:
    """Logits with everything outside top-k and outside the nucleus of mass top-p at minus infinity."""
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
    """Cumulative sums [B, V] of numbers from 0 to 1.

    On CUDA those of floats depend on which threads end first, and deterministic algorithms refuse them. Whole numbers
    have one sum in any order: there the numbers are rounded to multiples of a unit (2^-47 for a vocabulary of 32,000)
    that is as small as 64 bits allow.
    """
    if not x.is_cuda:
        return x.cumsum(dim=-1, dtype=dtype)
    units = 2.0 ** (62 - x.shape[-1].bit_length())
    return (x.double() * units).long().cumsum(dim=-1).double().div_(units).to(dtype)
