"""Where the time of an iteration goes."""

from __future__ import annotations

import time

import torch


def now(device: torch.device | str) -> float:
    """Return a clock's seconds, read once the device has finished its queued work."""
    if torch.device(device).type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


class Stopwatch:
    """Splits time into phases without gaps: `lap` assigns the time since the previous lap to the phase that ends."""

    def __init__(self) -> None:
        self.start("cpu")

    def start(self, device: torch.device | str) -> None:
        """Discard everything before now."""
        self.seconds: dict[str, float] = {}
        self._since = now(device)

    def lap(self, phase: str, device: torch.device | str) -> float:
        """End a phase, and return its seconds since the previous lap."""
        moment = now(device)
        seconds, self._since = moment - self._since, moment
        self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds
        return seconds

    def take(self) -> dict[str, float]:
        """Return the seconds of every phase since the last call."""
        seconds, self.seconds = self.seconds, {}
        return seconds
