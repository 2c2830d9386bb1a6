"""The results of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rlhf_lightning.evaluation.best_of_n import Curves


@dataclass
class Evaluation:
    """Metrics and samples of several policies on the same prompts.

    metrics: policy name -> metric name -> value (docs/metrics.md defines the names).
    samples: one row per prompt and sample: `prompt`, `kind` (None without one) and `policies`, which maps each policy's
        name to its `response`, `length`, `ended` and, if known, `gold`, `proxy` and `kl`.
    baseline: the policy that win rates are computed against.
    curves: scores by distance from the start, for best-of-n and training; None unless asked for.
    """

    metrics: dict[str, dict[str, float]]
    samples: list[dict[str, Any]] = field(default_factory=list)
    baseline: str = "sft"
    curves: Curves | None = None

    def flat(self) -> dict[str, float]:
        """Return one flat object for summary.json.

        >>> Evaluation({"ppo": {"kl": 3.0}}).flat()
        {'ppo.kl': 3.0}
        """
        rows = {f"{policy}.{name}": value for policy, row in self.metrics.items() for name, value in row.items()}
        return rows | (self.curves.flat() if self.curves is not None else {})
