"""Subword tokenizers of every kind, trained on a few sentences, without the hub."""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

TEXT = [
    "Tom and Sam were two friends who were at home. They played with a ball, and were happy! and we are here",
    "Once upon a time there were two friends. One day Tom went to the park with Sam; it was sunny.",
]
SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
KINDS = ["prepend", "metaspace_always", "metaspace_first", "metaspace_never", "byte_level", "word_piece", "cleaned_up"]


def subword_tokenizer(kind: str, *, bos: bool = True, size: int = 420, text: list[str] = TEXT) -> Any:
    """`prepend` is Llama's SentencePiece as normalisers, `metaspace_*` the same as a pre-tokenizer (not legacy)."""
    if kind == "word_piece":
        backend = Tokenizer(models.WordPiece(unk_token="<unk>"))
        backend.normalizer = normalizers.Lowercase()
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.decoder = decoders.WordPiece()
        trainer: Any = trainers.WordPieceTrainer(vocab_size=size, special_tokens=SPECIAL)
    elif kind in ("byte_level", "cleaned_up"):
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=SPECIAL, initial_alphabet=alphabet)
    else:
        backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=[*SPECIAL, *BYTES])
        fallback = [decoders.ByteFallback(), decoders.Fuse()]
        if kind == "prepend":
            backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
            first = [decoders.Replace("▁", " ")]
            backend.decoder = decoders.Sequence([*first, *fallback, decoders.Strip(" ", 1, 0)])
        else:
            scheme: Any = kind.removeprefix("metaspace_")
            backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
            strip = [] if scheme == "never" else [decoders.Strip(" ", 1, 0)]
            backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), *fallback, *strip])
    words = " ".join(text).split()
    backend.train_from_iterator(
        [" " + word for word in words] if kind in ("metaspace_never", "byte_level") else words, trainer
    )
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    if bos:
        backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>" if bos else None,
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="</s>",
        clean_up_tokenization_spaces=kind == "cleaned_up",
    )
