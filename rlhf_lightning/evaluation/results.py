"""What an evaluation found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Evaluation:
    """Figures and samples of several policies on the same prompts.

    metrics: policy name -> metric name -> value (docs/metrics.md defines the names).
    samples: one row a prompt and sample: `prompt`, `kind` (None without one) and `policies`, which maps each policy's
        name to its `response`, `length`, `ended` and, where known, `gold`, `proxy` and `kl`.
    baseline: the policy the win rates are against.
    """

    metrics: dict[str, dict[str, float]]
    samples: list[dict[str, Any]] = field(default_factory=list)
    baseline: str = "sft"

    def flat(self) -> dict[str, float]:
        """One flat object for summary.json.

        >>> Evaluation({"ppo": {"kl": 3.0}}).flat()
        {'ppo.kl': 3.0}
        """
        return {f"{policy}.{name}": value for policy, row in self.metrics.items() for name, value in row.items()}
