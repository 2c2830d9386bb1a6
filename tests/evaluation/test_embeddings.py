"""Distances between the embeddings of responses: by hand, their interval, and what an encoder must not read."""

from __future__ import annotations

import json
import math
from itertools import combinations
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from rlhf_lightning.commands import evaluate
from rlhf_lightning.commands.composition import compose_config
from rlhf_lightning.errors import UserError
from rlhf_lightning.evaluation.embeddings import Encoder, between_prompts, within_prompts
from tests.commands.runs import write_model
from tests.tiny import WORDS


def write_encoder(folder: Path) -> Path:
    """Write a tiny BERT with a word-level tokenizer, without special tokens around a text."""
    words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *WORDS])}
    backend = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = BertConfig(vocab_size=len(words), max_position_embeddings=16, initializer_range=0.5, **size)
    BertModel(config).save_pretrained(folder)
    return folder


def unit(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.nn.functional.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


def test_the_distances_are_the_means_over_pairs() -> None:
    vectors = unit(5, 3, 4)
    apart = [
        1 - float(vectors[p, k] @ vectors[q, j])
        for p, q in combinations(range(5), 2)
        for k in range(3)
        for j in range(3)
    ]
    assert between_prompts(vectors).mean == pytest.approx(sum(apart) / len(apart), abs=1e-12)
    together = [1 - float(vectors[p, k] @ vectors[p, j]) for p in range(5) for k, j in combinations(range(3), 2)]
    assert within_prompts(vectors).mean == pytest.approx(sum(together) / len(together), abs=1e-12)


def test_the_interval_is_the_jackknifes_and_covers_the_mean_of_many_sets() -> None:
    vectors = unit(8, 2, 3)
    whole = between_prompts(vectors)
    left_out = torch.tensor([between_prompts(torch.cat([vectors[:i], vectors[i + 1 :]])).mean for i in range(8)])
    error = math.sqrt(7 / 8 * float((left_out - whole.mean).square().sum()))
    # Around D, not around their mean, which is D as well.
    assert whole.high - whole.mean == pytest.approx(1.959964 * error, rel=1e-5)
    generator = torch.Generator().manual_seed(1)
    centre = torch.tensor([1.0, 0.0, 0.0, 0.0])
    sets = [
        between_prompts(torch.nn.functional.normalize(torch.randn(30, 1, 4, generator=generator) + centre, dim=-1))
        for _ in range(300)
    ]
    true = sum(each.mean for each in sets) / len(sets)
    assert 0.9 < sum(each.low <= true <= each.high for each in sets) / len(sets) < 0.99
    with pytest.raises(UserError, match="found 2 prompts"):
        between_prompts(vectors[:2])


def test_an_embedding_depends_on_no_padding_and_no_neighbour(tmp_path: Path) -> None:
    encoder, texts = Encoder(write_encoder(tmp_path / "bert"), batch_size=3), ["a", "b c d e f g", "", "a b", "a"]
    together = encoder(texts)
    alone = torch.cat([encoder([text]) for text in texts])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(5))
    tokens = torch.tensor([encoder.tokenizer("b c d e f g")["input_ids"]])
    mean = encoder.model(tokens).last_hidden_state[0].mean(dim=0)
    torch.testing.assert_close(together[1], mean / mean.norm(), atol=1e-6, rtol=0)
    assert encoder(["a " * 50]).isfinite().all()  # longer than it reads


def test_an_encoder_that_pools_otherwise_is_refused(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "bert")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    (folder / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode_mean_tokens": False}))
    with pytest.raises(UserError, match="pools otherwise than by the mean over tokens"):
        Encoder(folder)
    (folder / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    Encoder(folder)


def test_an_evaluation_reports_both_distances(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_model(Path("model"))
    write_encoder(Path("bert"))
    Path("prompts.jsonl").write_text("".join(json.dumps({"prompt": word}) + "\n" for word in "abcd"))
    words = ["policies={a: model}", "baseline=a", "prompts=prompts.jsonl", "max_new_tokens=4", "run_dir=done"]
    evaluate.evaluate(compose_config("evaluate", [*words, "embeddings.model=bert", "samples_per_prompt=2"]))
    summary = json.loads(Path("done/summary.json").read_text())
    for name in ("embedding_distance", "embedding_distance_same_prompt"):
        assert 0 <= summary[f"a.{name}_low"] <= summary[f"a.{name}"] <= summary[f"a.{name}_high"] <= 2
    assert "distance of answers'" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(UserError, match=r"^embeddings\.model: a/b/c does not exist"):
        evaluate.check(compose_config("evaluate", [*words, "embeddings.model=a/b/c"]))
