"""Comparing policies on the same held-out prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_lightning.data import PromptDataModule, PromptRow
from rlhf_lightning.errors import UserError, named_as
from rlhf_lightning.evaluation.diversity import distinct_n, self_bleu
from rlhf_lightning.evaluation.embeddings import Encoder, embedding_metrics
from rlhf_lightning.evaluation.judged import Judge, judged_metrics
from rlhf_lightning.evaluation.refusals import DetectorError, RefusalDetector, check_kinds, decide, rates_of
from rlhf_lightning.evaluation.results import Evaluation
from rlhf_lightning.evaluation.sampling import BestOf, SampledResponse, sample_responses
from rlhf_lightning.evaluation.win_rate import win_rate
from rlhf_lightning.models import load_policy, load_tokenizer
from rlhf_lightning.models.loading import Dtype
from rlhf_lightning.models.release import release_memory
from rlhf_lightning.rewards import RewardFunction, as_reward, score_samples
from rlhf_lightning.rollout import SamplingSettings


def evaluate_policies(
    policies: Mapping[str, str | Path],
    prompts_file: str | Path,
    baseline: str,
    reference: str | Path | None = None,
    gold: RewardFunction | None = None,
    proxy: RewardFunction | None = None,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    batch_size: int = 64,
    seed: int = 0,
    samples_per_prompt: int = 1,
    *,
    max_prompt_length: int = 512,
    limit: int | None = None,
    detector: RefusalDetector | None = None,
    detector_error: DetectorError | None = None,
    judge: Judge | None = None,
    self_bleu_of: int | None = None,
    best: BestOf | None = None,
    encoder: Encoder | None = None,
    every_pair: bool = False,
    dtype: Dtype = "float32",
    attn_implementation: str | None = None,
    ilql_beta: float | None = None,
) -> Evaluation:
    """Sample every policy on the same prompts with the same seed, score the responses, and return the summary.

    Args:
        policies: name -> run folder or Hugging Face folder; `baseline` is one of the names.
        prompts_file: held-out rows with a prompt; a `kind` column gives refusal rates, and all columns are passed to
            the scorers.
        reference: the KL is computed against it; left out if None (or at temperature 0, where samples do not estimate
            it).
        gold, proxy: the true score if there is one, and the score that was trained on.
        limit: use only the first `limit` prompts.
        detector, detector_error: decides whether a response refuses, and its error rates if known: the refusal rates
            are then also given corrected for them.
        judge: compares each policy's responses with the baseline's (see `judged_metrics`).
        self_bleu_of: how many responses of each policy are compared with each other; None leaves it out.
        best: adds to each policy the one that answers with the best of several samples, under `best.name(policy)`.
        encoder: measures how far apart responses are in meaning (see `embedding_metrics`).
        every_pair: compute win rates against every earlier policy, not only against the baseline.
        dtype, attn_implementation, ilql_beta: of policies and reference, see `load_policy`.

    Raises:
        UserError: an unknown baseline, prompts that leave nothing to sample, a reference with another vocabulary, or a
            scorer that does not return exactly one finite number per response.
    """
    if baseline not in policies:
        raise UserError(f"baseline={baseline!r} is not among the policies; choose one of {', '.join(policies)}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    load = partial(_load, device=device, dtype=dtype, attn_implementation=attn_implementation, ilql_beta=ilql_beta)
    settings = SamplingSettings(max_new_tokens=max_new_tokens, temperature=temperature)
    scorers = {name: scorer for name, scorer in (("gold", gold), ("proxy", proxy)) if scorer is not None}
    for scorer in (*scorers.values(), *([] if best is None else [best.reward])):
        as_reward(scorer).to(device)
    rows = _rows_of_each(policies, reference, prompts_file, max_prompt_length, limit, samples_per_prompt)
    key = _reference_key(policies, reference)
    reference_model = load(reference, key=key) if reference is not None and temperature > 0 else None
    sampled: dict[str, list[SampledResponse]] = {}
    scores: dict[str, dict[str, list[float]]] = {}
    for name, path in policies.items():
        tokenizer = load_tokenizer(path)
        model = load(path, key=f"policies.{name}")
        for shown, chooser in [(name, None), *([] if best is None else [(best.name(name), best)])]:
            sampled[shown] = sample_responses(
                model,
                tokenizer,
                rows[name],
                settings,
                batch_size=batch_size,
                seed=seed,
                reference=reference_model,
                best=chooser,
            )
            rows[shown] = rows[name]
            scores[shown] = {
                key: score_responses(key, each, tokenizer, rows[name], sampled[shown]) for key, each in scorers.items()
            }
        del model
        release_memory()  # before the next policy is loaded

    metrics = {}
    chosen = [] if best is None else [best.name(name) for name in policies]
    for name in sampled:
        metrics[name] = policy_metrics(rows[name], sampled[name], scores[name], detector, detector_error)
        if best is not None and name in chosen:
            metrics[name] = best.bounded(metrics[name])
        if self_bleu_of is not None:
            metrics[name]["self_bleu"] = self_bleu([each.text for each in sampled[name][:self_bleu_of]])
        if encoder is not None:
            metrics[name] |= embedding_metrics(encoder, [each.text for each in sampled[name]], samples_per_prompt)
        for other in _opponents(name, list(sampled), baseline, every_pair):
            metrics[name] |= _win_rates(scores[name], scores[other], other, samples_per_prompt)
        if judge is not None and name != baseline:
            metrics[name] |= _judged(judge, rows[name], sampled[name], sampled[baseline], baseline, samples_per_prompt)
    return Evaluation(metrics, _sample_rows(rows[baseline], sampled, scores), baseline)


def _judged(
    judge: Judge,
    rows: Sequence[PromptRow],
    own: Sequence[SampledResponse],
    others: Sequence[SampledResponse],
    baseline: str,
    samples_per_prompt: int,
) -> dict[str, float]:
    prompts = [row.columns.get("messages") or row.text for row in rows]
    answers, theirs = [each.text for each in own], [each.text for each in others]
    lengths = [(one.length, other.length) for one, other in zip(own, others, strict=True)]
    return judged_metrics(judge, prompts, answers, theirs, lengths, samples_per_prompt, baseline)


def read_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts_file: str | Path, max_prompt_length: int, limit: int | None
) -> list[PromptRow]:
    """Return the file's prompts in order, tokenised as PPO tokenises them."""
    datamodule = PromptDataModule(
        tokenizer, train=str(prompts_file), max_prompt_length=max_prompt_length, limit=limit, val_fraction=0.0
    )
    datamodule.setup("fit")
    return list(datamodule.train_prompts)


def score_responses(
    key: str,
    scorer: RewardFunction,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[PromptRow],
    responses: Sequence[SampledResponse],
) -> list[float]:
    """Return the scorer's number for each response, checked. The scorer receives what a reward receives in PPO."""
    tokens, ended = [response.tokens for response in responses], [response.ended for response in responses]
    return score_samples(scorer, tokenizer, rows, tokens, ended, key)


def policy_metrics(
    rows: Sequence[PromptRow],
    responses: Sequence[SampledResponse],
    scores: Mapping[str, Sequence[float]],
    detector: RefusalDetector | None = None,
    detector_error: DetectorError | None = None,
) -> dict[str, float]:
    """Return one policy's metrics on its own; docs/metrics.md defines each key."""
    n = len(responses)
    texts = [response.text for response in responses]
    tokens = sum(response.length for response in responses)
    metrics = {f"{key}_mean": sum(values) / n for key, values in scores.items()}
    kls = [response.kl for response in responses if response.kl is not None]
    if kls:
        metrics["kl"] = sum(kls) / n
        metrics["kl_per_token"] = sum(kls) / max(tokens, 1)
    metrics["length"] = tokens / n
    metrics["distinct_1"] = distinct_n(texts, 1)
    metrics["distinct_2"] = distinct_n(texts, 2)
    metrics["eos_rate"] = sum(response.ended for response in responses) / n
    metrics |= _refusals(rows, texts, detector, detector_error)
    return metrics


def _refusals(
    rows: Sequence[PromptRow],
    texts: Sequence[str],
    detector: RefusalDetector | None,
    detector_error: DetectorError | None,
) -> dict[str, float]:
    """Return the refusal rates of rows with a kind, corrected ones, those of each kind, and the share undecided."""
    asked = [(row, text) for row, text in zip(rows, texts, strict=True) if row.columns.get("kind") is not None]
    kinds = [str(row.columns["kind"]) for row, _ in asked]
    reads_messages = hasattr(detector, "all_of")
    prompts = [(reads_messages and row.columns.get("messages")) or row.text for row, _ in asked]
    verdicts = decide(prompts, [text for _, text in asked], detector)
    rates = rates_of(kinds, verdicts)
    metrics = dict(rates)
    if None in verdicts:
        metrics["refusal_undecided"] = verdicts.count(None) / len(verdicts)
    for name, rate in rates.items() if detector_error is not None else ():
        corrected = detector_error.corrected(rate) if detector_error is not None else None
        metrics |= {} if corrected is None else {f"{name}_corrected": corrected}
    for kind in sorted(set(kinds)):
        own = [verdict for each, verdict in zip(kinds, verdicts, strict=True) if each == kind and verdict is not None]
        metrics |= {f"refused.{kind}": sum(own) / len(own)} if own else {}
    return metrics


def _opponents(name: str, policies: Sequence[str], baseline: str, every_pair: bool) -> list[str]:
    """Return the opponents in a policy's win rates: the baseline and, with `every_pair`, every earlier policy."""
    before = policies[: policies.index(name)] if every_pair else []
    return [other for other in policies if other != name and (other == baseline or other in before)]


def _win_rates(
    scores: Mapping[str, Sequence[float]], baseline: Mapping[str, Sequence[float]], name: str, samples_per_prompt: int
) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for key, values in scores.items():
        result = win_rate(values, baseline[key], samples_per_prompt)
        stem = f"{key}_win_rate_vs_{name}"
        metrics |= {stem: result.rate, f"{stem}_low": result.low, f"{stem}_high": result.high}
    return metrics


def _sample_rows(
    rows: Sequence[PromptRow],
    sampled: Mapping[str, Sequence[SampledResponse]],
    scores: Mapping[str, Mapping[str, Sequence[float]]],
) -> list[dict[str, Any]]:
    table = []
    for i, row in enumerate(rows):
        answers: dict[str, dict[str, Any]] = {}
        for name, responses in sampled.items():
            response = responses[i]
            answers[name] = {"response": response.text, "length": response.length, "ended": response.ended}
            answers[name] |= {} if response.kl is None else {"kl": response.kl}
            answers[name] |= {key: values[i] for key, values in scores[name].items()}
        table.append({"prompt": _shown(row), "kind": row.columns.get("kind"), "policies": answers})
    return table


def _load(
    path: str | Path,
    device: str,
    dtype: Dtype,
    attn_implementation: str | None,
    ilql_beta: float | None,
    key: str = "policies",
) -> PreTrainedModel:
    with named_as(key, ""):
        model: PreTrainedModel = load_policy(path, dtype, attn_implementation, ilql_beta)
    return model.to(device).eval()  # type: ignore[arg-type]


def _reference_key(policies: Mapping[str, str | Path], reference: str | Path | None) -> str:
    """Return the key under which the reference's folder was named: it is often one of the policies."""
    return next((f"policies.{name}" for name, path in policies.items() if path == reference), "reference")


def _rows_of_each(
    policies: Mapping[str, str | Path],
    reference: str | Path | None,
    prompts_file: str | Path,
    max_prompt_length: int,
    limit: int | None,
    samples_per_prompt: int,
) -> dict[str, list[PromptRow]]:
    """Return each policy's tokenised prompts, each repeated `samples_per_prompt` times; all checks run first."""
    with named_as(_reference_key(policies, reference), ""):
        vocabulary = None if reference is None else load_tokenizer(reference).get_vocab()
    rows: dict[str, list[PromptRow]] = {}
    for name, path in policies.items():
        with named_as(f"policies.{name}", ""):
            tokenizer = load_tokenizer(path)
        if vocabulary is not None and tokenizer.get_vocab() != vocabulary:
            raise UserError(
                f"reference: its vocabulary differs from that of policy {name!r}, so a KL between them has no meaning; "
                "give the model this policy started from, or reference=null"
            )
        prompts = read_prompts(tokenizer, prompts_file, max_prompt_length, limit)
        check_kinds(prompts)
        rows[name] = [row for row in prompts for _ in range(samples_per_prompt)]
    counts = {name: len(of_policy) for name, of_policy in rows.items()}
    if len(set(counts.values())) > 1:
        raise UserError(
            f"the policies' tokenizers leave different numbers of prompts ({counts}); raise max_prompt_length, or "
            "compare policies that share a tokenizer"
        )
    return rows


def _shown(row: PromptRow) -> str:
    """Return the last user message, rather than the chat template's markup."""
    messages = row.columns.get("messages")
    return str(messages[-1].get("content") or row.text) if messages else row.text
