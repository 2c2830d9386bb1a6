"""A language model in this process as a judge: log-probabilities of verdicts, and generated text, in batches."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from rlhf_lightning.content_hashes import content_hash
from rlhf_lightning.data.templates import render_prompt
from rlhf_lightning.errors import UserError, named, named_as
from rlhf_lightning.judging.cache import AnswerCache
from rlhf_lightning.judging.usage import Usage
from rlhf_lightning.models import (
    end_of_sequence_ids,
    freeze,
    load_causal_lm,
    load_tokenizer,
    output_head,
    run_model_folder,
)
from rlhf_lightning.models.folder_marks import folder_mark
from rlhf_lightning.models.forward import hidden_at
from rlhf_lightning.models.limits import positions
from rlhf_lightning.models.loading import Dtype
from rlhf_lightning.rollout import NativeEngine, SamplingSettings, seeded_generator

LEAD = "The better answer is"  # how the model's own answer begins, before A or B


class LocalJudge:
    """A model in this process. Questions go through its chat template, if it has one.

    Answers are cached by a hash of the model's files, the question and the settings. A question that does not fit into
    the model's positions has no answer: None.

    Args:
        path: a run folder, a Hugging Face folder or a hub name.
        dtype, attn_implementation: of the network, see `load_causal_lm`.
        batch_size: questions at a time.
        max_new_tokens: most tokens of a generated answer.
        temperature: of generated answers; 0 takes the most likely token.
        cache: an SQLite file; None: nothing is stored.
        seed: of generated answers at a temperature above 0.
    """

    def __init__(
        self,
        path: str | Path,
        dtype: Dtype = "float32",
        attn_implementation: str | None = None,
        batch_size: int = 8,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        cache: str | Path | None = None,
        seed: int = 0,
    ) -> None:
        self.key = named("judge.model")
        with named_as(self.key, ""):
            self.folder = run_model_folder(path)
            self.tokenizer = load_tokenizer(path)
        self.mark = folder_mark(self.folder) or str(self.folder)
        self.dtype, self.attn_implementation, self.batch_size = dtype, attn_implementation, batch_size
        self.sampling = SamplingSettings(max_new_tokens, temperature)
        self.usage, self.seed = Usage(), seed
        self._cache = AnswerCache(cache, f"{self.key.removesuffix('model')}cache")
        self.device = "cuda" if torch.cuda.is_available() else "cpu"

    @cached_property
    def model(self) -> Any:
        """Return the network, loaded at the first question that is not in the cache."""
        with named_as(self.key, ""):
            network = load_causal_lm(self.folder, self.dtype, self.attn_implementation, dropout=False)
        return freeze(network.to(self.device).eval())

    def to(self, device: torch.device | str) -> None:
        """Move the computation to a device."""
        self.device = str(device)
        if "model" in self.__dict__:
            self.model.to(device)

    def logprobs(
        self, questions: Sequence[str], verdicts: Sequence[str] = ("A", "B"), lead: str = LEAD
    ) -> list[tuple[float, ...] | None]:
        """Return the log-probabilities in nats of verdicts as the next token after `lead`, the start of an answer.

        Raises:
            UserError: the tokenizer does not give each verdict one distinct token.
        """
        tokens = self._verdict_tokens(tuple(verdicts), lead)

        def ask(texts: Sequence[str]) -> list[Any]:
            rows = [self._ids(f"{self._rendered(text)}{lead} {verdicts[0]}")[:-1] for text in texts]
            return self._in_batches(rows, 0, lambda part: self._next_token(part, tokens))

        def is_answer(stored: Any) -> bool:
            numbers = isinstance(stored, list) and all(isinstance(each, float) for each in stored)
            return stored is None or (numbers and len(stored) == len(verdicts))

        found = self._known_or_asked(["logprobs", lead, list(verdicts)], questions, ask, is_answer)
        return [None if each is None else tuple(each) for each in found]

    def generate(self, questions: Sequence[str]) -> list[str | None]:
        """Return the model's answer to each question."""
        settings = [self.sampling.max_new_tokens, self.sampling.temperature, self.seed]

        def ask(texts: Sequence[str]) -> list[Any]:
            rows = [self._ids(self._rendered(text)) for text in texts]
            return self._in_batches(rows, self.sampling.max_new_tokens, self._continued)

        return self._known_or_asked(
            ["generate", *settings], questions, ask, lambda stored: isinstance(stored, str | None)
        )

    def _known_or_asked(self, what: list[Any], questions: Sequence[str], ask: Any, is_answer: Any) -> list[Any]:
        entries = [content_hash([self.mark, self.dtype, *what, question]) for question in questions]
        answers = self._cache.get(entries, is_answer)
        missing = {entry: text for entry, text in zip(entries, questions, strict=True) if entry not in answers}
        self.usage.count(cached=len(questions) - len(missing), requests=len(missing))
        names = list(missing)
        step = 8 * self.batch_size  # questions sorted by length together, and stored together
        for start in range(0, len(names), step):
            part = names[start : start + step]
            new = dict(zip(part, ask([missing[name] for name in part]), strict=True))
            self._cache.put(new)
            answers |= new
        return [answers[entry] for entry in entries]

    def _rendered(self, question: str) -> str:
        """Return the question up to where the model's own answer begins."""
        if getattr(self.tokenizer, "chat_template", None):
            return render_prompt(self.tokenizer, [{"role": "user", "content": question}])
        return f"{question}\n\n"

    def _ids(self, text: str) -> list[int]:
        special = not getattr(self.tokenizer, "chat_template", None)  # a template writes its own special tokens
        ids: list[int] = self.tokenizer(text, add_special_tokens=special)["input_ids"]
        return ids[:-1] if special and ids and ids[-1] == self.tokenizer.eos_token_id else ids

    def _verdict_tokens(self, verdicts: tuple[str, ...], lead: str) -> list[int]:
        rows = [self._ids(f"{lead} {verdict}") for verdict in verdicts]
        ends = [row[-1] for row in rows]
        if len({tuple(row[:-1]) for row in rows}) != 1 or len(set(ends)) < len(ends):
            raise UserError(
                f"{self.key}: the tokenizer of {self.folder} has no single token for each of "
                f"{', '.join(verdicts)}; judge by generated verdicts: {self.key.removesuffix('model')}by=reasons"
            )
        return ends

    def _in_batches(self, rows: list[list[int]], room: int, call: Any) -> list[Any]:
        """Return the answers to rows of tokens, batching rows of similar length; None for a row that is too long."""
        limit = positions(self.model)
        fits = [i for i, row in enumerate(rows) if limit is None or len(row) + room <= limit]
        answers: list[Any] = [None] * len(rows)
        fits.sort(key=lambda i: len(rows[i]))
        for start in range(0, len(fits), self.batch_size):
            part = fits[start : start + self.batch_size]
            self.usage.count(prompt_tokens=sum(len(rows[i]) for i in part))
            for i, answer in zip(part, call([rows[i] for i in part]), strict=True):
                answers[i] = answer
        return answers

    @torch.inference_mode()
    def _next_token(self, rows: list[list[int]], tokens: list[int]) -> list[list[float]]:
        """Return next-token log-probabilities of right-padded rows: nothing before the padding sees it."""
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        padded = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long, device=self.device)
        for i, row in enumerate(rows):
            padded[i, : len(row)] = torch.tensor(row, device=self.device)
        wanted = torch.zeros_like(padded, dtype=torch.bool)
        wanted[torch.arange(len(rows), device=self.device), lengths - 1] = True
        last = hidden_at(self.model, padded, wanted, shared=lengths)  # both orders of a pair begin with the same tokens
        logprobs = torch.log_softmax(output_head(self.model)(last).float(), dim=-1)[:, tokens]
        self.usage.count(completion_tokens=len(rows))
        found: list[list[float]] = logprobs.tolist()
        return found

    def _continued(self, rows: list[list[int]]) -> list[str]:
        eos_ids = end_of_sequence_ids(self.model, self.tokenizer)
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else eos_ids[0]
        engine = NativeEngine(pad, eos_ids, self.batch_size)
        engine.sync(self.model)
        generator = seeded_generator(torch.device(self.device), "judge", self.seed, content_hash(rows))
        responses = engine.generate(rows, self.sampling, generator).responses()
        self.usage.count(completion_tokens=sum(map(len, responses)))
        return [str(self.tokenizer.decode(each, skip_special_tokens=True)).strip() for each in responses]
