"""Measure the time of each stage of a batch, and format it as the standard header Server-Timing."""

import time


class Stages:
    """A stopwatch that records milliseconds per stage."""

    def __init__(self) -> None:
        self.ms: dict[str, float] = {}
        self._since = time.perf_counter()

    def done(self, stage: str) -> None:
        """Add the time since the previous call to this stage."""
        now = time.perf_counter()
        self.ms[stage] = self.ms.get(stage, 0.0) + (now - self._since) * 1e3
        self._since = now

    @property
    def total_ms(self) -> float:
        return sum(self.ms.values())

    def header(self) -> str:
        """Return the value of the header Server-Timing, such as ``signal;dur=0.412, parse;dur=0.021``."""
        return ", ".join(f"{stage};dur={ms:.3f}" for stage, ms in self.ms.items())
