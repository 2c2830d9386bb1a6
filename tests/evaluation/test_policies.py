from __future__ import annotations

import json
import math
from itertools import product
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rlhf_lightning.data import PromptRow
from rlhf_lightning.errors import UserError
from rlhf_lightning.evaluation import evaluate_policies
from rlhf_lightning.evaluation.sampling import sample_responses
from rlhf_lightning.models import response_logprobs
from rlhf_lightning.rollout import SamplingSettings

WORDS = ["<pad>", "<eos>", "<unk>", "a", "b", "c", "d"]


def save_model(folder: Path, seed: int, words: list[str] = WORDS, scale: float = 0.5) -> Path:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        pad_token_id=0, eos_token_id=1, bos_token_id=None, initializer_range=scale,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    run = tmp_path / "run"  # a run folder keeps its model in `model/`
    save_model(run / "model", seed=1)
    return {"sft": save_model(tmp_path / "sft", seed=0), "ppo": run}


@pytest.fixture
def prompts_file(tmp_path: Path) -> Path:
    rows = [
        {"prompt": "a b", "kind": "unsafe"},
        {"prompt": "c", "kind": "question"},
        {"prompt": "d a c", "kind": "unsafe"},
    ]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def count_a(prompts: list[str], responses: list[str], **columns: list) -> list[float]:
    assert {"kind", "ended"} <= columns.keys()
    return [float(response.split().count("a")) for response in responses]


def test_the_figures_are_those_of_the_samples(folders, prompts_file):
    evaluation = evaluate_policies(
        folders,
        prompts_file,
        "sft",
        folders["sft"],
        gold=count_a,
        proxy=count_a,
        max_new_tokens=6,
        samples_per_prompt=4,
    )
    ppo, sft = evaluation.metrics["ppo"], evaluation.metrics["sft"]
    answers = [row["policies"]["ppo"] for row in evaluation.samples]
    assert len(answers) == 12
    assert [row["prompt"] for row in evaluation.samples[:5]] == ["a b"] * 4 + ["c"]
    assert ppo["gold_mean"] == ppo["proxy_mean"] == sum(a["response"].split().count("a") for a in answers) / 12
    assert ppo["length"] == sum(a["length"] for a in answers) / 12
    assert ppo["kl"] == pytest.approx(sum(a["kl"] for a in answers) / 12)
    assert ppo["kl_per_token"] == pytest.approx(12 * ppo["kl"] / sum(a["length"] for a in answers))
    assert ppo["eos_rate"] == sum(a["ended"] for a in answers) / 12
    pairs = [(r["policies"]["ppo"]["gold"], r["policies"]["sft"]["gold"]) for r in evaluation.samples]
    wins = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / 12
    assert ppo["gold_win_rate_vs_sft"] == pytest.approx(wins)
    assert ppo["gold_win_rate_vs_sft_low"] < wins < ppo["gold_win_rate_vs_sft_high"]
    assert {"unsafe_refusal_rate", "over_refusal_rate", "distinct_1", "distinct_2"} <= ppo.keys()
    assert not any("win_rate" in key for key in sft)
    assert evaluation.flat()["ppo.kl"] == ppo["kl"]


def test_a_policy_is_no_distance_from_itself(folders, prompts_file):
    evaluation = evaluate_policies(folders, prompts_file, "sft", folders["sft"], max_new_tokens=6, batch_size=2)
    assert evaluation.metrics["sft"]["kl"] == 0.0
    assert evaluation.metrics["ppo"]["kl"] != 0.0
    assert "gold_mean" not in evaluation.metrics["sft"]


def test_equal_policies_answer_equally_and_seeds_differ(folders, prompts_file):
    twins = {"one": folders["ppo"], "two": folders["ppo"]}

    def responses(seed):
        samples = evaluate_policies(twins, prompts_file, "one", seed=seed, samples_per_prompt=5).samples
        return [[row["policies"][name]["response"] for row in samples] for name in twins]

    first, second = responses(0)
    assert first == second
    assert responses(1)[0] != first


def test_greedy_samples_estimate_no_kl(folders, prompts_file):
    evaluation = evaluate_policies(folders, prompts_file, "sft", folders["sft"], temperature=0.0)
    assert "kl" not in evaluation.metrics["ppo"]


@pytest.mark.parametrize("temperature", [1.0, 1.3])
def test_the_sampled_kl_is_the_enumerated_one(tmp_path, temperature):
    policy, reference = (
        LlamaForCausalLM.from_pretrained(save_model(tmp_path / str(seed), seed)).eval() for seed in (0, 1)
    )
    prompt, n = [3, 4], 4000
    # All responses of at most 2 tokens: one that ends immediately, or a first token followed by any second one.
    sequences = [[1]] + [[first, second] for first, second in product([0, 2, 3, 4, 5, 6], range(7))]
    ids = torch.tensor([s + [0] * (2 - len(s)) for s in sequences])
    mask = torch.tensor([[1.0] * len(s) + [0.0] * (2 - len(s)) for s in sequences])
    prompt_ids = torch.tensor([prompt] * len(sequences))
    with torch.no_grad():
        log_p, log_q = (
            response_logprobs(m, prompt_ids, torch.ones_like(prompt_ids), ids, mask, temperature).sum(1)
            for m in (policy, reference)
        )
    assert float(log_p.exp().sum()) == pytest.approx(1.0, abs=1e-4)
    exact = float((log_p.exp() * (log_p - log_q)).sum())
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path / "0")
    rows = [PromptRow(input_ids=prompt, text="a b", columns={})] * n
    settings = SamplingSettings(max_new_tokens=2, temperature=temperature)
    responses = sample_responses(policy, tokenizer, rows, settings, batch_size=n, seed=0, reference=reference)
    kl = torch.tensor([response.kl for response in responses])
    assert abs(float(kl.mean()) - exact) < 3 * float(kl.std()) / math.sqrt(n)
    assert exact > 0.1


def test_a_response_is_the_text_that_continues_the_prompt(tmp_path):
    save_model(tmp_path / "0", 0)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path / "0")
    rows = [PromptRow(input_ids=[2, 3], text="<unk> a", columns={})] * 8
    policy = LlamaForCausalLM.from_pretrained(tmp_path / "0")
    responses = sample_responses(policy, tokenizer, rows, SamplingSettings(3), batch_size=4, seed=0)
    for response in responses:
        whole = tokenizer.decode([2, 3, *response.tokens[: response.length - response.ended]])
        assert "<unk> a" + response.text == whole
        assert response.kl is None and response.length == len(response.tokens) <= 3


def test_mistakes_are_named(folders, prompts_file, tmp_path):
    with pytest.raises(UserError, match="baseline='dpo' is not among the policies; choose one of sft, ppo"):
        evaluate_policies(folders, prompts_file, "dpo")
    other = save_model(tmp_path / "other", 0, [*WORDS[:-1], "z"])
    with pytest.raises(UserError, match="vocabulary differs from that of policy 'sft'"):
        evaluate_policies(folders, prompts_file, "sft", reference=other)
    with pytest.raises(UserError, match="gold: returned 1 scores for 3"):
        evaluate_policies(folders, prompts_file, "sft", gold=lambda prompts, responses, **columns: [1.0])


def test_prompts_that_a_policy_cannot_read_are_one_line(folders, prompts_file):
    with pytest.raises(UserError, match=r"max_new_tokens: found 5000, the longest prompt has 3 tokens, and the model"):
        evaluate_policies(folders, prompts_file, "sft", max_new_tokens=5000)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folders["sft"])
    tokenizer.add_tokens(["new"])
    tokenizer.save_pretrained(folders["sft"])
    prompts_file.write_text('{"prompt": "a new"}\n')
    with pytest.raises(UserError, match=r"policies: the tokenizer's token 'new' has the id 7"):
        evaluate_policies({"sft": folders["sft"]}, prompts_file, "sft")
