"""How much a judge was asked, and what that cost."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field


@dataclass
class Usage:
    """Counts of requests and tokens; cached answers cost nothing. Threads may share it."""

    requests: int = 0
    cached: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def count(self, **more: int) -> None:
        """Add to the counts, by their names."""
        with self._lock:
            for name, number in more.items():
                setattr(self, name, getattr(self, name) + number)

    def cost(self, prompt_price: float | None, completion_price: float | None) -> float | None:
        """Return what the tokens cost, with prices per million; None if no price is known.

        >>> Usage(prompt_tokens=2_000_000, completion_tokens=500_000).cost(0.5, 2.0)
        2.0
        """
        if prompt_price is None and completion_price is None:
            return None
        prices = (prompt_price or 0.0, completion_price or 0.0)
        return (self.prompt_tokens * prices[0] + self.completion_tokens * prices[1]) / 1e6

    def __str__(self) -> str:
        return (
            f"asked {self.requests} questions ({self.cached} more were known), {self.retries} retries; "
            f"{self.prompt_tokens:,} prompt tokens, {self.completion_tokens:,} completion tokens"
        )
