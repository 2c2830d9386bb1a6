"""A world so small that every response can be listed, and the exact results that follow.

A two-layer Llama over exactly V tokens answers with exactly T of them: N = V^T responses per prompt, each with a reward
drawn from N(0, 1). That is the hardest table to learn, because nothing generalises. Rewards are standardised under the
reference. With coefficient beta, and means over P prompts:

    J(pi) = E_pi[r] - beta KL(pi || ref)
    pi*   = ref exp(r / beta) / Z,        J* = beta log Z
    J* - J(pi) = beta KL(pi || pi*)

Shapes: P prompts, N responses, T tokens, V vocabulary. Sums over responses are in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from itertools import product
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from rlhf_lightning.data import PromptDataModule, PromptRow
from rlhf_lightning.models import predict_tokens
from rlhf_lightning.rollout import Generation


def word_tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    """Return a tokenizer in which word i has id i. EOS and padding share one more, which the network cannot produce."""
    vocabulary = {word: i for i, word in enumerate([*words, "<eos>"])}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="<eos>"))
    backend.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token="<eos>")


# Standard deviation of the initial weights: how uneven the reference is. Its probabilities over 64 responses range from
# about 0.002 to 0.06; a larger spread makes rarer responses and a harder world, which has not been measured.
SPREAD = 0.04


def tiny_llama(vocabulary: int, seed: int, model_class: Any = LlamaForCausalLM, **config: Any) -> PreTrainedModel:
    """Return a random network of 2 layers of 64, always the same; its embedding has one more row, for the padding."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = model_class(
            LlamaConfig(
                vocab_size=vocabulary,
                hidden_size=64,
                intermediate_size=128,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=16,
                initializer_range=SPREAD,
                pad_token_id=None,
                bos_token_id=None,
                eos_token_id=None,
                **config,
            )
        )
        model.set_input_embeddings(nn.Embedding(vocabulary + 1, 64))
        nn.init.normal_(model.get_input_embeddings().weight, std=SPREAD)
    return model


def draw(candidates: Iterable[tuple[int, ...]], count: int, generator: torch.Generator) -> list[list[int]]:
    """Draw `count` of the candidates that have at least two different tokens."""
    varied = [list(candidate) for candidate in candidates if len(set(candidate)) > 1]
    assert len(varied) >= count
    return [varied[i] for i in torch.randperm(len(varied), generator=generator)[:count].tolist()]


class World:
    """Prompts, all their responses and their rewards, for one seed.

    A quarter of the prompts have two tokens and the rest three, so that rows are padded. Short ones begin with the
    first half of the vocabulary, long ones with the second: no prompt continues another, so no two share a state. Every
    prompt has two different tokens: without a BOS, attention over equal tokens averages equal values, and the network
    could not tell "a" from "a a", nor represent the optimum.

    Attributes:
        prompts: P lists of token ids.
        responses: [N, T] token ids.
        rewards: [P, N], mean 0 and variance 1 under the reference for every prompt.
        ref: [P, N], log-probabilities of the reference.
    """

    def __init__(self, vocabulary: int = 4, length: int = 3, n_prompts: int = 8, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        half, short = vocabulary // 2, n_prompts // 4
        tokens, first, last = range(vocabulary), range(half), range(half, vocabulary)
        self.vocabulary, self.length = vocabulary, length
        self.prompts = draw(product(first, tokens), short, generator)
        self.prompts += draw(product(last, tokens, tokens), n_prompts - short, generator)
        self.responses = torch.tensor(list(product(range(vocabulary), repeat=length)))
        self.words = [chr(ord("a") + i) for i in range(vocabulary)]
        self.tokenizer = word_tokenizer(self.words)
        self.load_model: Callable[[], PreTrainedModel] = partial(tiny_llama, vocabulary, seed)
        self.ref = self.logprobs(self.load_model())
        rewards = torch.randn(self.ref.shape, generator=generator, dtype=torch.float64)
        rewards = rewards - self.expectation(rewards)[:, None]
        self.rewards = rewards / self.expectation(rewards.square())[:, None].sqrt()

    # ---- the policy, exactly

    def token_logprobs(self, model: nn.Module, temperature: float = 1.0) -> Tensor:
        """Return log pi(token | prompt, tokens before it), [P, N, T] in float32, with gradients if they are on."""
        ids, flags = self.rows()
        tokens = predict_tokens(model, ids, flags, temperature).logprobs
        return tokens.view(len(self.prompts), len(self.responses), self.length)

    def logprobs(self, model: nn.Module, temperature: float = 1.0) -> Tensor:
        """Return log pi(response | prompt), [P, N] in float64, without gradients."""
        with torch.no_grad():
            return self.token_logprobs(model, temperature).double().sum(dim=2)

    def rows(self) -> tuple[Tensor, Tensor]:
        """Return every response to every prompt as right-padded rows [P * N, L], and flags on the response."""
        longest = max(len(prompt) for prompt in self.prompts) + self.length
        ids, flags = [], []
        for prompt in self.prompts:
            padding = [self.vocabulary] * (longest - len(prompt) - self.length)
            for response in self.responses.tolist():
                ids.append([*prompt, *response, *padding])
                flags.append([0] * len(prompt) + [1] * self.length + [0] * len(padding))
        return torch.tensor(ids), torch.tensor(flags)

    def everything(self) -> tuple[list[PromptRow], Generation]:
        """Return every response to every prompt, P * N rows in the form in which an engine returns samples."""
        rows = [PromptRow(prompt, self.text(prompt), {}) for prompt in self.prompts for _ in self.responses]
        tokens = self.responses.repeat(len(self.prompts), 1)
        zeros = torch.zeros(tokens.shape)
        ended = torch.zeros(len(tokens), dtype=torch.bool)
        return rows, Generation(tokens, torch.ones_like(zeros), zeros, ended)

    # ---- what follows from it

    def expectation(self, x: Tensor, logprobs: Tensor | None = None) -> Tensor:
        """Return the mean of x [P, N] over responses, [P]; under the reference unless log-probabilities are given."""
        return ((self.ref if logprobs is None else logprobs).exp() * x).sum(dim=1)

    def kl(self, logprobs: Tensor, others: Tensor | None = None) -> float:
        """Return KL(pi || other), nats per response, mean over prompts; the other is the reference unless given."""
        others = self.ref if others is None else others
        return float(self.expectation(logprobs - others, logprobs).mean())

    def objective(self, logprobs: Tensor, beta: float) -> float:
        """Return J(pi)."""
        return float(self.expectation(self.rewards, logprobs).mean()) - beta * self.kl(logprobs)

    def optimum(self, beta: float) -> Tensor:
        """Return log pi*, [P, N]."""
        return (self.ref + self.rewards / beta).log_softmax(dim=1)

    def best_objective(self, beta: float) -> float:
        """Return J* = beta log Z."""
        return beta * float((self.ref + self.rewards / beta).logsumexp(dim=1).mean())

    def regret(self, logprobs: Tensor, beta: float) -> float:
        """Return (J* - J(pi)) / (J* - J(ref)): 0 at the optimum, 1 at the reference."""
        best = self.best_objective(beta)
        return (best - self.objective(logprobs, beta)) / (best - self.objective(self.ref, beta))

    def beta_for(self, target: float) -> float:
        """Return the coefficient whose optimum is `target` nats from the reference, by bisection, since KL falls."""
        low, high = 1e-3, 1e3
        for _ in range(100):
            middle = (low * high) ** 0.5
            low, high = (middle, high) if self.kl(self.optimum(middle)) > target else (low, middle)
        return (low * high) ** 0.5

    def values(self, token_logprobs: Tensor, token_rewards: Tensor) -> Tensor:
        """Return V(prompt, response[:t]), [P, N, T]: the expected sum of rewards from token t on, computed backwards.

        Responses are in lexicographic order, so those with the same first t tokens are adjacent.
        """
        n_prompts, n, length = token_logprobs.shape
        future = torch.zeros(n_prompts, n, dtype=torch.float64)
        values = []
        for t in reversed(range(length)):
            taken = token_rewards[:, :, t].double() + future
            # One response represents each way to continue with token t: all of them have the same expected future.
            step = self.vocabulary ** (length - 1 - t)
            shape = (n_prompts, self.vocabulary**t, self.vocabulary)
            probability = token_logprobs[:, ::step, t].double().exp().view(shape)
            value = (probability * taken[:, ::step].view(shape)).sum(dim=2)
            future = value.repeat_interleave(n // value.shape[1], dim=1)
            values.append(future)
        return torch.stack(values[::-1], dim=2)

    # ---- the same for the real modules

    def text(self, ids: list[int]) -> str:
        """Return token ids as text."""
        return " ".join(self.words[i] for i in ids)

    def reward(self, prompts: list[str], responses: list[str], **columns: Any) -> list[float]:
        """Return the table as a RewardFunction over text."""
        return self.looked_up(self.rewards, prompts, responses)

    def looked_up(self, table: Tensor, prompts: list[str], responses: list[str]) -> list[float]:
        """Return the entries of a table [P, N] for texts."""
        row = {self.text(prompt): p for p, prompt in enumerate(self.prompts)}
        weights = [self.vocabulary**i for i in reversed(range(self.length))]
        scores = []
        for prompt, response in zip(prompts, responses, strict=True):
            tokens = [self.words.index(word) for word in response.split()]
            assert len(tokens) == self.length
            number = sum(w * token for w, token in zip(weights, tokens, strict=True))
            scores.append(float(table[row[prompt], number]))
        return scores

    def prompt_data(self) -> PromptDataModule:
        """Return the prompts as a data module."""
        return PromptDataModule(self.tokenizer, [{"prompt": self.text(prompt)} for prompt in self.prompts])
