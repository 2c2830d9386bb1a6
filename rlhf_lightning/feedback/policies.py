"""What answers the prompts: local models, sampled by the native engine, and those of a vLLM server."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from rlhf_lightning.addresses import check_address
from rlhf_lightning.data import PromptRow, preparation, response_texts
from rlhf_lightning.data.messages import Options, template_options
from rlhf_lightning.errors import UserError, blaming, named_as
from rlhf_lightning.feedback.drawing import Drawing
from rlhf_lightning.feedback.records import Prompt
from rlhf_lightning.feedback.samples import Said
from rlhf_lightning.feedback.sources import Prompts
from rlhf_lightning.models import end_of_sequence_ids, load_policy, load_tokenizer, run_model_folder
from rlhf_lightning.models.folder_marks import folder_mark
from rlhf_lightning.models.limits import check_positions, check_tokens
from rlhf_lightning.models.release import release_memory
from rlhf_lightning.rewards.reading import as_answer
from rlhf_lightning.rollout import NativeEngine, SamplingSettings, seeded_generator
from rlhf_lightning.rollout.vllm_client import VLLMClient

MOST_AT_ONCE = 64  # open requests to a server, which batches them itself


class Policy(Protocol):
    """What answers prompts. `mark` changes with its weights."""

    name: str
    mark: str

    def prepare(self, prompts: Prompts) -> None:
        """Prepare the prompts as the policy does, before any network is loaded.

        Raises:
            UserError: it cannot.
        """

    def answers(self, positions: Sequence[int]) -> list[list[Said]]:
        """Return the responses to some of the prompts; none to a prompt that leaves the policy nothing to read."""
        ...

    def close(self) -> None:
        """Release what it holds."""


def make_policy(name: str, place: str | Path, drawing: Drawing) -> Policy:
    """Return the policy of a run folder, a Hugging Face folder, a hub name, or a server's address.

    Raises:
        UserError: there is no model, or the server does not answer.
    """
    if str(place).startswith(("http://", "https://")):
        return ServedPolicy(name, str(place), drawing)
    return LocalPolicy(name, place, drawing)


class LocalPolicy:
    """A local model. Its samples are a function of the seed, its name and the prompts that share a batch."""

    def __init__(self, name: str, place: str | Path, drawing: Drawing) -> None:
        self.name, self.place, self.drawing = name, place, drawing
        self.key = f"policies.{name}"
        with named_as(self.key, ""):
            folder = run_model_folder(place)
        self.mark = folder_mark(folder) or folder
        self._engine: NativeEngine | None = None
        self._rows: dict[int, PromptRow] = {}  # by the prompt's index in its file
        self._indices: list[int] = []

    def prepare(self, prompts: Prompts) -> None:
        with named_as(self.key, ""), blaming(f"{self.key}: the tokenizer of {self.place} cannot be loaded"):
            self._tokenizer = load_tokenizer(self.place)
        with blaming(f"prompts: {prompts.source}: the rows cannot be tokenised"):
            rows, self.report = preparation.prompts(
                prompts.rows, self._tokenizer, prompts.source, self.drawing.max_prompt_length
            )
        self._rows = {row.number - 1: row for row in rows}
        self._indices = [index for index, _ in prompts.rows]

    def answers(self, positions: Sequence[int]) -> list[list[Said]]:
        found = [self._rows.get(self._indices[position]) for position in positions]
        rows = [row for row in found if row is not None]
        said = iter(self._draw(rows) if rows else [])
        return [[] if row is None else next(said) for row in found]

    def close(self) -> None:
        self._engine = None
        release_memory()

    def _draw(self, rows: list[PromptRow]) -> list[list[Said]]:
        drawing, count = self.drawing, self.drawing.samples_per_prompt
        engine = self._engine or self._load()
        ids = [list(row.input_ids) for row in rows for _ in range(count)]
        settings = SamplingSettings(drawing.max_new_tokens, drawing.temperature)
        assert engine.model is not None
        device = next(engine.model.parameters()).device
        asked = hashlib.sha256(repr(ids).encode()).hexdigest()
        generator = seeded_generator(device, "collect", drawing.seed, self.name, asked)
        generation = engine.generate(ids, settings, generator)
        ended = generation.ended.tolist()
        texts = response_texts(self._tokenizer, ids, generation.responses(), ended)
        said = []
        for number, (text, end) in enumerate(zip(texts, ended, strict=True)):
            columns = rows[number // count].columns
            prompt: Prompt = columns.get("messages") or rows[number // count].text
            said.append(Said(as_answer(self._tokenizer, prompt, text, end, _options(columns, prompt)), end))
        return [said[start : start + count] for start in range(0, len(said), count)]

    def _load(self) -> NativeEngine:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        drawing, rows = self.drawing, self._rows.values()
        with named_as(self.key, ""):
            model = load_policy(self.place, drawing.dtype, drawing.attn_implementation).to(device).eval()
        eos_ids = end_of_sequence_ids(model, self._tokenizer)
        pad_id = self._tokenizer.pad_token_id if self._tokenizer.pad_token_id is not None else eos_ids[0]
        check_tokens(model, self._tokenizer, [pad_id, *(token for row in rows for token in row.input_ids)], self.key)
        longest = max(len(row.input_ids) for row in rows)
        check_positions(
            model,
            longest + drawing.max_new_tokens,
            f"max_new_tokens: found {drawing.max_new_tokens}, the longest prompt has {longest} tokens",
            f"both together must be at most {{limit}} for {self.key}",
        )
        self._engine = NativeEngine(pad_id, eos_ids, drawing.batch_size, drawing.samples_per_prompt)
        self._engine.sync(model)
        return self._engine


class ServedPolicy:
    """A model on a vLLM server, which renders conversations with its own chat template.

    Args:
        name: the policy's name.
        place: the server's address; `#name` selects one of several models.
        drawing: how responses are sampled.

    Raises:
        UserError: no request can be sent to the address, or the server does not answer.
    """

    def __init__(self, name: str, place: str, drawing: Drawing) -> None:
        self.name, self.drawing, self.key = name, drawing, f"policies.{name}"
        address, _, wanted = place.partition("#")
        check_address(self.key, address, credentials=True)
        connect = partial(VLLMClient, address, key=self.key, remedy="run the same command again")
        self._client = connect()
        self.model = self._served(connect(attempts=2), wanted)
        self.mark = f"{self._client.address}#{self.model}"
        self._questions: list[tuple[Prompt, Options]] = []

    def prepare(self, prompts: Prompts) -> None:
        self._questions = [
            (question, _options(row, question))
            for (_, row), question in zip(prompts.rows, prompts.questions, strict=True)
        ]

    def answers(self, positions: Sequence[int]) -> list[list[Said]]:
        with ThreadPoolExecutor(min(MOST_AT_ONCE, len(positions))) as pool:
            try:
                return list(pool.map(self._ask, [self._questions[position] for position in positions]))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def close(self) -> None:
        """Do nothing: it holds nothing."""

    def _served(self, client: VLLMClient, wanted: str) -> str:
        answer = client.get("/v1/models")
        try:
            names = [str(card["id"]) for card in answer["data"]]
        except (TypeError, KeyError) as error:
            raise UserError(f"{self.key}: {client.address} lists no models under /v1/models") from error
        if wanted in names or (not wanted and len(names) == 1):
            return wanted or names[0]
        found = f"no model {wanted!r}" if wanted else f"{len(names)} models"
        raise UserError(f"{self.key}: {client.address} has {found}; choose one by #name: {', '.join(names) or 'none'}")

    def _ask(self, asked: tuple[Prompt, Options]) -> list[Said]:
        prompt, options = asked
        drawing, plain = self.drawing, isinstance(prompt, str)
        digest = hashlib.sha256(repr((drawing.seed, self.name, prompt)).encode("utf-8", "replace")).digest()
        body: dict[str, Any] = {
            "model": self.model,
            "n": drawing.samples_per_prompt,
            "max_tokens": drawing.max_new_tokens,
            "temperature": drawing.temperature,
            "seed": int.from_bytes(digest[:6], "big"),
        }
        if plain:
            body["prompt"] = prompt
        else:
            others = {name: value for name, value in options.items() if name != "tools"}
            body |= {"messages": prompt} | ({"tools": options["tools"]} if "tools" in options else {})
            body |= {"chat_template_kwargs": others} if others else {}
        path = "/v1/completions" if plain else "/v1/chat/completions"
        answer = self._client.post(path, body)
        try:
            choices = [_said(choice, plain) for choice in answer["choices"]]
        except (TypeError, KeyError, AttributeError):
            choices = []
        if len(choices) != drawing.samples_per_prompt:
            found = " ".join(str(answer).split())[:200]
            raise UserError(f"{self.key}: {self._client.address} does not answer as vLLM's {path} does; found {found}")
        return choices


def _options(columns: Any, prompt: Prompt) -> Options:
    return template_options(columns, True) if not isinstance(prompt, str) else {}


def _said(choice: Any, plain: bool) -> Said:
    """Return one choice of a completion or chat completion."""
    text = choice["text"] if plain else choice["message"].get("content")
    return Said(str(text or ""), choice.get("finish_reason") == "stop")
