"""The tokenizer of the world, and tiny language models with random weights to train on it."""

from __future__ import annotations

import re
from functools import cache
from typing import Literal, get_args

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from rlhf_lightning.errors import UserError
from rlhf_lightning.simulation.prompts import all_prompts
from rlhf_lightning.simulation.sentences import lexicon

SPECIAL_TOKENS = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
Family = Literal["llama", "gpt2"]
FAMILIES: tuple[Family, ...] = get_args(Family)
MAX_POSITIONS = 128


@cache
def vocabulary() -> tuple[str, ...]:
    """Return the special tokens, the punctuation, and every word of the world's prompts and sentences."""
    words = {word for text in (*all_prompts(), *lexicon()) for word in re.findall(r"\w+|[.,?]", text)}
    return (*SPECIAL_TOKENS.values(), *sorted(words))


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return a word-level tokenizer: one token per word or punctuation mark. The world's text decodes to itself.

    Example:
        >>> tokenizer = build_tokenizer()
        >>> tokenizer.decode(tokenizer("I am sorry, but I can not help with that.").input_ids)
        'i am sorry, but i can not help with that.'
    """
    ids = {word: index for index, word in enumerate(vocabulary())}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=SPECIAL_TOKENS["unk_token"]))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    marks = [decoders.Replace(f" {mark}", mark) for mark in ".,?"]
    # WordPiece's own clean-up would turn "do not" into "don't".
    tokenizer.decoder = decoders.Sequence([decoders.WordPiece(prefix="##", cleanup=False), decoders.Fuse(), *marks])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
        **SPECIAL_TOKENS,
    )


def build_model(
    tokenizer: PreTrainedTokenizerBase,
    family: Family = "llama",
    hidden_size: int = 96,
    layers: int = 3,
    heads: int = 4,
    seed: int = 0,
) -> PreTrainedModel:
    """Return a causal language model over the tokenizer's words, with random float32 weights and no dropout.

    The weights depend on `seed`; the global random state is unchanged.

    Raises:
        UserError: the family is unknown, or `hidden_size` is not a multiple of twice the heads.
    """
    if hidden_size % (2 * heads):
        raise UserError(f"hidden_size is {hidden_size}; choose a multiple of {2 * heads} (twice heads={heads})")
    token_ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    generator = torch.random.default_generator
    state = generator.get_state()
    generator.manual_seed(seed)
    try:
        if family == "llama":
            return LlamaForCausalLM(
                LlamaConfig(
                    vocab_size=len(tokenizer),
                    hidden_size=hidden_size,
                    intermediate_size=3 * hidden_size,
                    num_hidden_layers=layers,
                    num_attention_heads=heads,
                    num_key_value_heads=heads,
                    max_position_embeddings=MAX_POSITIONS,
                    tie_word_embeddings=True,
                    initializer_range=0.05,
                    dtype="float32",
                    **token_ids,
                )
            )
        if family == "gpt2":
            return GPT2LMHeadModel(
                GPT2Config(
                    vocab_size=len(tokenizer),
                    n_embd=hidden_size,
                    n_layer=layers,
                    n_head=heads,
                    n_positions=MAX_POSITIONS,
                    initializer_range=0.05,
                    resid_pdrop=0.0,
                    embd_pdrop=0.0,
                    attn_pdrop=0.0,
                    dtype="float32",
                    **token_ids,
                )
            )
    finally:
        generator.set_state(state)
    raise UserError(f"family is {family!r}; choose 'llama' or 'gpt2'")
