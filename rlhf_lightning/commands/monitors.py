"""What a callback can monitor: the metrics that each algorithm logs. A test keeps the names in step with the runs."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Any

from rlhf_lightning.errors import UserError

_ALGORITHMS = "rlhf_lightning.algorithms."
_KNOWN = ("rlhf_lightning.", "lightning.pytorch.callbacks.")  # callbacks of others may log metrics of their own
_SPEED = ("perf/mfu", "perf/peak_teraflops")
_PAIRS = ("loss", "accuracy", "margin", "mean_reward")
_IMPLICIT = ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen")
_PREFERENCES = (*_IMPLICIT, "logps/rejected")
_PHASES = ("rollout", "score", "update")
METRICS: dict[str, frozenset[str]] = {
    "SFTModule": frozenset(
        ("lr", "train/loss", "val/loss", "val/perplexity", "perf/tokens_per_second", *_SPEED),
    ),
    "RewardModule": frozenset(
        (
            *("lr", "perf/tokens_per_second", *_SPEED),
            *(f"{split}/{name}" for split in ("train", "val") for name in _PAIRS),
            *("val/score_mean", "val/score_std", "val/calibration_error"),
        )
    ),
    "DPOModule": frozenset(
        (
            *("lr", "train/loss", "val/loss", "perf/tokens_per_second", *_SPEED),
            *(f"{prefix}{name}" for prefix in ("", "val/") for name in _PREFERENCES),
        )
    ),
    "PPOModule": frozenset(
        (
            *("lr", "train/loss", "kl/coef", "perf/update_tokens_per_second", *_SPEED),
            *(f"objective/{name}" for name in ("scores", "kl", "entropy", "rlhf_reward")),
            *(f"policy/{name}" for name in ("loss", "approx_kl", "clip_fraction", "ratio_mean", "ratio_max")),
            *(f"value/{name}" for name in ("loss", "clip_fraction", "explained_variance")),
            *(f"rollout/{name}" for name in ("response_length", "eos_rate", "tokens_per_second", "logprob_gap")),
            *(f"rollout/{name}" for name in ("logprob_gap_max", "importance_weight", "importance_capped")),
            *(f"time/{what}{phase}" for what in ("", "share_") for phase in _PHASES),
        )
    ),
}


def check_monitors(config: Mapping[str, Any]) -> None:
    """Raise UserError for a callback that monitors what the run never logs.

    Only where all that logs is known: an algorithm of ours, and callbacks of ours and of Lightning's. Elsewhere the
    callback finds out when it first looks.
    """
    algorithm = str(config["algorithm"].get("_target_", "")).removeprefix(_ALGORITHMS)
    sections = {name: section for name, section in (config.get("callbacks") or {}).items() if section}
    if algorithm not in METRICS or not all(_is_known(section) for section in sections.values()):
        return
    components = (config.get("reward") or {}).get("components") or {}
    names = METRICS[algorithm] | {f"objective/scores/{name}" for name in components}
    for callback, section in sections.items():
        found = section.get("monitor")
        of_another = any(found in others for others in METRICS.values())  # which `effects` says
        if isinstance(found, str) and found not in names and not of_another:
            near = difflib.get_close_matches(found, names, n=1)
            hint = f"did you mean {near[0]}?" if near else f"allowed: {_listed(names)}"
            raise UserError(f'callbacks.{callback}.monitor: found "{found}", which {algorithm} never logs; {hint}')


def _listed(names: Collection[str], shown: int = 12) -> str:
    ordered = sorted(names, key=lambda name: (name.count("/"), name))
    more = f" and {len(ordered) - shown} more (docs/metrics.md)" if len(ordered) > shown else ""
    return f"{', '.join(ordered[:shown])}{more}"


def _is_known(section: Any) -> bool:
    return isinstance(section, Mapping) and str(section.get("_target_", "")).startswith(_KNOWN)
