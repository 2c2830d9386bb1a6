"""What a callback can monitor: the metrics that each algorithm logs. A test keeps the names in line with real runs."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from rlhf_lightning.errors import UserError
from rlhf_lightning.setting_rules import part_names
from rlhf_lightning.source.declarations import Declaration, declaration, our_algorithms

HELD_OUT = frozenset(
    f"val/{name}"
    for name in (
        *("held_out", "repetition", "distinct_1", "distinct_2"),
        *("refusal_rate", "unsafe_refusal_rate", "over_refusal_rate"),
    )
)
"""The metrics that `callbacks.OverOptimization` logs, besides `val/held_out/<name>`."""

AVERAGE = frozenset({"average/decay", "average/distance"})
"""The metrics that `callbacks.TrainableAverage` logs."""

_KNOWN = ("rlhf_lightning.", "lightning.pytorch.callbacks.")  # other callbacks may log their own metrics


def metrics_of(algorithm: Declaration) -> frozenset[str]:
    """Return the metrics that a run of this algorithm logs: those that it declares, and those of the instruments."""
    speed = "perf/update_tokens_per_second" if algorithm.on_policy else "perf/tokens_per_second"
    return algorithm.logs | {speed, "perf/mfu", "perf/peak_teraflops"}


def check_monitors(config: Mapping[str, Any]) -> None:
    """Raise UserError for a callback that monitors what the run never logs.

    Only if all loggers of metrics are known: this package's algorithms, and its and Lightning's callbacks. Otherwise
    the callback itself fails when it first reads the metric.
    """
    algorithm = declaration(config)
    sections = {name: section for name, section in (config.get("callbacks") or {}).items() if section}
    if not algorithm.ours or not all(_is_known(section) for section in sections.values()):
        return
    reward = config.get("reward") or {}
    components = reward.get("components") or {}
    parts = [*components, *part_names(reward.get("functions") or [])]
    names = metrics_of(algorithm) | {f"{kind}/scores/{name}" for name in parts for kind in ("objective", "val")}
    names |= {f"reward/disagreement/{name}" for name, part in components.items() if part.get("models")}
    names |= _of_callbacks(sections.values())
    for callback, section in sections.items():
        found = section.get("monitor")
        if isinstance(found, str) and found not in names:
            others = [other.name for other in our_algorithms() if found in other.logs]
            near = difflib.get_close_matches(found, names, n=1)
            hint = f"did you mean {near[0]}?" if near else f"allowed: {_listed(names)}"
            hint = f"it is a metric of {' and '.join(others)} (docs/metrics.md)" if others else hint
            raise UserError(f'callbacks.{callback}.monitor: found "{found}", which {algorithm.name} never logs; {hint}')


def _of_callbacks(sections: Iterable[Any]) -> set[str]:
    """Return the metrics that the held-out scorers' callback and the average add."""
    found: set[str] = set()
    for section in sections:
        if str(section.get("_target_", "")).endswith(".OverOptimization"):
            found |= HELD_OUT | {f"val/held_out/{name}" for name in section.get("scorers") or {}}
        if str(section.get("_target_", "")).endswith(".TrainableAverage"):
            found |= AVERAGE
    return found


def _listed(names: Collection[str], shown: int = 12) -> str:
    ordered = sorted(names, key=lambda name: (name.count("/"), name))
    more = f" and {len(ordered) - shown} more (docs/metrics.md)" if len(ordered) > shown else ""
    return f"{', '.join(ordered[:shown])}{more}"


def _is_known(section: Any) -> bool:
    return isinstance(section, Mapping) and str(section.get("_target_", "")).startswith(_KNOWN)
