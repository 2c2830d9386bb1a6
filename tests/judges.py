"""The smallest local judge: a model with random weights whose tokenizer knows the verdicts."""

from __future__ import annotations

from pathlib import Path

from tests.tiny import WORDS, tiny_model, tiny_tokenizer

KNOWN = [*WORDS, "A", "B", *"123456789", "The", "better", "answer", "is", "rating", "Yes", "No"]


def write_judge(folder: Path, positions: int = 512) -> Path:
    """Write the judge, with its tokenizer."""
    tiny_model(vocab_size=len(KNOWN) + 3, positions=positions).save_pretrained(folder)
    tiny_tokenizer(words=KNOWN).save_pretrained(folder)
    return folder
