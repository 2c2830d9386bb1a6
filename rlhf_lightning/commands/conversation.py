"""A conversation with a causal language model that prints its answers as they are generated."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from rlhf_lightning.data import PromptRow, response_texts, tokenize_prompt
from rlhf_lightning.data.messages import Message
from rlhf_lightning.data.templates import render_prompt
from rlhf_lightning.errors import UserError, named
from rlhf_lightning.evaluation.sampling import BestOf
from rlhf_lightning.models import end_of_sequence_ids, load_policy, load_tokenizer
from rlhf_lightning.models.limits import check_tokens
from rlhf_lightning.models.loading import Dtype
from rlhf_lightning.outside_text import for_terminal
from rlhf_lightning.rewards import as_reward


class TooLongError(UserError):
    """A line that the model has no positions for."""


class Conversation:
    """Several turns with a model whose tokenizer has a chat template; without one, each prompt is completed on its own.

    Prompts are tokenised by the function that prepares training prompts. Answers are sampled from the full tempered
    policy, as in PPO's rollouts: filters and penalties of the model's own generation config are switched off.

    Args:
        path: a run folder, a Hugging Face folder or a hub name.
        system: a system message before the first turn.
        temperature: divides the logits; 0 takes the most likely token.
        max_new_tokens: longest answer in tokens, including EOS.
        dtype, attn_implementation: of the network, see `load_causal_lm`.
        best: sample several answers to a turn and show the best one; None: one answer, printed while it is generated.
        seed: the answer to a turn is a function of (seed, turn number, conversation).
        ilql_beta: strength of the values of a model that has ILQL's heads; None: that of its export.

    Raises:
        UserError: a system message for a tokenizer without a chat template; a token without an embedding in the model.
    """

    def __init__(
        self,
        path: str,
        *,
        system: str | None = None,
        temperature: float = 1.0,
        max_new_tokens: int = 256,
        seed: int = 0,
        best: BestOf | None = None,
        dtype: Dtype = "auto",
        attn_implementation: str | None = None,
        ilql_beta: float | None = None,
    ) -> None:
        self.key = named("model")
        self.tokenizer = load_tokenizer(path)
        if system is not None and not self.tokenizer.chat_template:
            raise UserError(f"system: the tokenizer of {path} has no chat template, so it cannot mark a system message")
        self.model = load_policy(path, dtype, attn_implementation, ilql_beta).eval()
        self.model.to("cuda" if torch.cuda.is_available() else "cpu")
        self.system, self.max_new_tokens, self.seed, self.best = system, max_new_tokens, seed, best
        if best is not None:
            as_reward(best.reward).to(self.model.device)
        self.ends = end_of_sequence_ids(self.model, self.tokenizer)
        self.settings = GenerationConfig(
            do_sample=temperature > 0,
            temperature=temperature or 1.0,
            top_k=0,
            top_p=1.0,
            repetition_penalty=1.0,
            eos_token_id=self.ends,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        self.reset()
        self._prompt("a", None)  # fails early if the chat template has tokens that the model does not have

    def reset(self) -> None:
        """Forget the conversation so far."""
        self.turn = 0
        self.messages: list[Message] = self._opening()

    @torch.no_grad()
    def answer(self, text: str) -> str:
        """Answer one line: print the answer while it is generated, remember it, and return it.

        Raises:
            TooLongError: the line alone leaves no position for an answer.
        """
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        # A long conversation loses its beginning, so that an answer still fits, but the line itself loses nothing.
        longest = max(limit - self.max_new_tokens, limit // 2, self._length(text, limit)) if limit else None
        question, ids = self._prompt(text, longest)
        self.settings.max_new_tokens = min(self.max_new_tokens, limit - len(ids)) if limit else self.max_new_tokens
        prompt = torch.tensor([ids], device=self.model.device)
        torch.manual_seed(self.seed + self.turn)
        arguments = {"attention_mask": torch.ones_like(prompt), "generation_config": self.settings}
        if self.best is None:
            printer = AnswerPrinter(self.tokenizer, ids, self.ends)
            output = self.model.generate(prompt, streamer=printer, **arguments)
            tokens = output[0, len(ids) :].tolist()
        else:
            output = self.model.generate(prompt, num_return_sequences=self.best.n, **arguments)
            tokens = self._chosen(question, ids, [self._until_end(row[len(ids) :].tolist()) for row in output])
        said = _text(self.tokenizer, ids, tokens, self.ends).strip()
        if self.best is not None:
            print(for_terminal(said), flush=True)
        self.messages = [*question, {"role": "assistant", "content": said}]
        self.turn += 1
        return said

    def _until_end(self, tokens: list[int]) -> list[int]:
        """Return an answer without the padding after its end."""
        end = next((i for i, token in enumerate(tokens) if token in self.ends), len(tokens))
        return tokens[: end + 1]

    def _chosen(self, question: list[Message], ids: list[int], answers: list[list[int]]) -> list[int]:
        """Return the best of several answers, which the reward sees as in training."""
        assert self.best is not None
        asked = question if self.tokenizer.chat_template else str(question[-1]["content"])
        columns = {"messages": question} if self.tokenizer.chat_template else {}
        rows = [PromptRow(ids, render_prompt(self.tokenizer, asked), columns)] * len(answers)
        place = self.best.choose(self.tokenizer, rows, answers, [answer[-1] in self.ends for answer in answers])
        return answers[place[0]]

    def _length(self, text: str, limit: int) -> int:
        """Return the number of tokens of a line at the start of a conversation."""
        opening: list[Message] = [*self._opening(), {"role": "user", "content": text}]
        length = len(tokenize_prompt(self.tokenizer, opening if self.tokenizer.chat_template else text, None))
        if length >= limit:
            raise TooLongError(
                f"found {length} tokens, and {self.key} has {limit} positions for them and the answer; give fewer than "
                f"{limit}"
            )
        return length

    def _opening(self) -> list[Message]:
        return [{"role": "system", "content": self.system}] if self.system else []

    def _prompt(self, text: str, longest: int | None) -> tuple[list[Message], list[int]]:
        """Return the conversation with the user's next line, and the tokens that its answer starts from."""
        question = [*self.messages, {"role": "user", "content": text}]
        ids = tokenize_prompt(self.tokenizer, question if self.tokenizer.chat_template else text, longest)
        check_tokens(self.model, self.tokenizer, ids, self.key)
        return question, ids


class AnswerPrinter(BaseStreamer):
    """Prints an answer while it is generated: the text of `response_texts`, from its first visible character.

    Args:
        tokenizer: the model's.
        prompt: tokens of the prompt.
        ends: end-of-sequence ids; the one that ends the answer is not printed.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: list[int], ends: list[int]) -> None:
        self.tokenizer, self.prompt, self.ends = tokenizer, prompt, ends
        self.tokens: list[int] | None = None  # None before the first call, which brings the prompt
        self.printed = 0

    def put(self, value: Tensor) -> None:
        """Receive the prompt, then the answer's tokens one by one."""
        if self.tokens is None:
            self.tokens = []
            return
        self.tokens += value.flatten().tolist()
        self._print(self._answer().rstrip("\N{REPLACEMENT CHARACTER}"))  # the rest of the character is still to come

    def end(self) -> None:
        """Finish the answer."""
        self._print(self._answer())
        print(flush=True)

    def _answer(self) -> str:
        return _text(self.tokenizer, self.prompt, self.tokens or [], self.ends).lstrip()

    def _print(self, text: str) -> None:
        print(for_terminal(text[self.printed :]), end="", flush=True)
        self.printed = max(self.printed, len(text))


def _text(tokenizer: PreTrainedTokenizerBase, prompt: list[int], answer: list[int], ends: list[int]) -> str:
    ended = bool(answer) and answer[-1] in ends
    return response_texts(tokenizer, [prompt], [answer], [ended])[0]
