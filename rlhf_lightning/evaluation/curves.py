"""Best-of-n of the policy that training began from, compared with the training itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from rlhf_lightning.errors import named_as
from rlhf_lightning.evaluation.best_of_n import Curves, best_of_n_points, fitted, powers_of_two, training_points
from rlhf_lightning.evaluation.policies import read_prompts, score_responses
from rlhf_lightning.evaluation.sampling import sample_responses
from rlhf_lightning.models import load_policy, load_tokenizer
from rlhf_lightning.models.loading import Dtype
from rlhf_lightning.rewards import RewardFunction, as_reward
from rlhf_lightning.rollout import SamplingSettings

MOST_AT_ONCE = 1024  # number of responses


def over_optimization_curves(
    start: str | Path,
    prompts_file: str | Path,
    best_of: int,
    course: Iterable[Mapping[str, Any]],
    source: str,
    held_out: RewardFunction,
    proxy: RewardFunction,
    settings: SamplingSettings,
    batch_size: int = 64,
    seed: int = 0,
    *,
    max_prompt_length: int = 512,
    limit: int | None = None,
    dtype: Dtype = "float32",
    attn_implementation: str | None = None,
    ilql_beta: float | None = None,
) -> Curves:
    """Return the gains over the start from choosing among samples and from training, by distance.

    Args:
        start: the policy that training began from.
        prompts_file: held-out prompts.
        best_of: samples per prompt; the best of 1, 2, 4, ... and of all of them is chosen.
        course: the rows of metrics.jsonl of a run trained with callbacks=overoptimization.
        source: the file they are from, for messages.
        held_out, proxy: the score that is not trained on (the callback's), and the one that is.
        settings, batch_size, seed: for sampling; batch_size counts responses.
        max_prompt_length, limit, dtype, attn_implementation, ilql_beta: see `evaluate_policies`.

    Raises:
        UserError: fewer than three validations.
    """
    trained = training_points(course, source)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = load_tokenizer(start)
    with named_as("policies", ""):
        model = load_policy(start, dtype, attn_implementation, ilql_beta).to(device).eval()
    rows = [row for row in read_prompts(tokenizer, prompts_file, max_prompt_length, limit) for _ in range(best_of)]
    responses = sample_responses(model, tokenizer, rows, settings, batch_size=batch_size, seed=seed)
    scores: dict[str, list[list[float]]] = {}
    for name, scorer in (("proxy", proxy), ("gold", held_out)):
        as_reward(scorer).to(device)
        flat = [
            score
            for part in range(0, len(rows), MOST_AT_ONCE)
            for score in score_responses(
                name, scorer, tokenizer, rows[part : part + MOST_AT_ONCE], responses[part : part + MOST_AT_ONCE]
            )
        ]
        scores[name] = [flat[i : i + best_of] for i in range(0, len(flat), best_of)]
    points = best_of_n_points(scores["proxy"], scores["gold"], powers_of_two(best_of))
    curves = (fitted("best-of-n", points[0], points, False), fitted("training", points[0], trained, True))
    return Curves(points[0], curves)
