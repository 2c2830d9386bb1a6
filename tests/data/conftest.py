"""Word-level tokenizers with every relevant property: BOS or not, pad == EOS or not, with and without template."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

WORDS = [*"abcdefghijklmnopqrstuvwxyz", "user", "assistant", "system", ":", "yes", "no"]
SPECIAL = ["<pad>", "<bos>", "<eos>", "<unk>"]

# The assistant's turn ends with EOS and a newline, as in ChatML.
PLAIN_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] }} : {{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)
MARKED_TEMPLATE = (  # the EOS is outside the block, as in many published templates
    "{{ bos_token }}{% for m in messages %}{{ m['role'] }} : "
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}{% endgeneration %}{{ eos_token }}"
    "{% else %}{{ m['content'] }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)


def build_tokenizer(
    bos: bool = True, pad_is_eos: bool = False, template: str | None = None, eos_after: bool = False
) -> PreTrainedTokenizerFast:
    """`bos`: a post-processor puts <bos> before a plain text; `eos_after`: and <eos> after it."""
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *WORDS])}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = Whitespace()
    if bos or eos_after:
        pieces = (["<bos>"] if bos else []) + ["$A"] + (["<eos>"] if eos_after else [])
        special = [("<bos>", vocabulary["<bos>"]), ("<eos>", vocabulary["<eos>"])]
        backend.post_processor = TemplateProcessing(single=" ".join(pieces), special_tokens=special)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        pad_token="<eos>" if pad_is_eos else "<pad>",
    )
    tokenizer.chat_template = template
    return tokenizer


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


@pytest.fixture
def chat_tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer(template=PLAIN_TEMPLATE)


@pytest.fixture
def marked_tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer(template=MARKED_TEMPLATE)


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[..., Path]:
    def write(rows: list[dict[str, Any]], name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write
