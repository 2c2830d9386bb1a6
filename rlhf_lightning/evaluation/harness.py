"""Tasks of lm-eval (EleutherAI's evaluation harness) on policies; an extra: pip install 'rlhf-lightning[harness]'."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rlhf_lightning.errors import UserError, blaming, named_as
from rlhf_lightning.models import load_policy, load_tokenizer
from rlhf_lightning.models.loading import Dtype
from rlhf_lightning.models.release import release_memory

Results = dict[str, dict[str, float]]


def run_harness(
    policies: Mapping[str, str | Path],
    tasks: Sequence[str],
    folders: Sequence[str] = (),
    batch_size: int = 64,
    seed: int = 0,
    dtype: Dtype = "float32",
    attn_implementation: str | None = None,
    ilql_beta: float | None = None,
) -> Results:
    """Return each policy's results on tasks of lm-eval: policy -> `harness.TASK.METRIC` -> value.

    A metric's standard error is its `METRIC_stderr`; one of a filter other than `none` is `METRIC.FILTER`.

    Args:
        policies: name -> run folder, Hugging Face folder or hub name.
        tasks: names of tasks.
        folders: folders with YAML files of tasks beside lm-eval's own.
        batch_size, seed: of the harness; the seed of few-shot examples, too.
        dtype, attn_implementation, ilql_beta: of the policies, see `load_policy`.

    Raises:
        UserError: a task that does not exist, or that fails.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=list(folders) or None)
    for name in tasks:
        if name not in manager.all_tasks:
            near = difflib.get_close_matches(name, manager.all_tasks, n=1)
            hint = f"did you mean {near[0]}? A" if near else "a"
            raise UserError(f"harness: lm-eval has no task {name}; {hint} task of your own is given as its file.yaml")
    seeds = {f"{kind}_seed": seed for kind in ("random", "numpy_random", "torch_random", "fewshot_random")}
    found: Results = {}
    for policy, path in policies.items():
        with named_as(f"policies.{policy}", ""):
            model = load_policy(path, dtype, attn_implementation, ilql_beta).eval()
        model.to("cuda" if torch.cuda.is_available() else "cpu")
        network = HFLM(pretrained=model, tokenizer=load_tokenizer(path), batch_size=batch_size)
        with blaming(f"harness: {', '.join(tasks)} failed"):
            output: Any = simple_evaluate(
                network, tasks=list(tasks), task_manager=manager, log_samples=False, bootstrap_iters=1000, **seeds
            )
        found[policy] = flat_results(output["results"])
        del model, network
        release_memory()
    return found


def flat_results(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Return lm-eval's results by task as one flat object; what is not a finite number is left out.

    >>> flat_results({"t": {"alias": "t", "acc,none": 0.5, "acc_stderr,none": "N/A", "match,strict": 1}})
    {'harness.t.acc': 0.5, 'harness.t.match.strict': 1.0}
    """
    flat = {}
    for task, metrics in results.items():
        for key, value in metrics.items():
            metric, _, chosen = key.partition(",")
            known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if known and chosen:
                flat[f"harness.{task}.{metric}{'' if chosen == 'none' else f'.{chosen}'}"] = float(value)
    return flat


def result_lines(results: Results) -> list[str]:
    """Return a line for each metric of each policy, with its standard error.

    >>> result_lines({"sft": {"harness.t.acc": 0.5, "harness.t.acc_stderr": 0.25}})
    ['sft: t.acc 0.5000 (standard error 0.2500)']
    """
    lines = []
    for policy, metrics in results.items():
        for key, value in metrics.items():
            name, _, chosen = key.removeprefix("harness.").partition(".")
            metric, _, rest = chosen.partition(".")
            error = metrics.get(f"harness.{name}.{metric}_stderr{f'.{rest}' if rest else ''}")
            if not metric.endswith("_stderr"):
                after = "" if error is None else f" (standard error {error:.4f})"
                lines.append(f"{policy}: {name}.{chosen} {value:.4f}{after}")
    return lines
