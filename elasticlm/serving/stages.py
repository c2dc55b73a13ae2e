"""Where the time of a batch goes, told to the client in the standard header Server-Timing."""

import time


class Stages:
    """Milliseconds by stage, lap by lap."""

    def __init__(self) -> None:
        self.ms: dict[str, float] = {}
        self._since = time.perf_counter()

    def done(self, stage: str) -> None:
        """The time since the last stage was done belongs to this one."""
        now = time.perf_counter()
        self.ms[stage] = self.ms.get(stage, 0.0) + (now - self._since) * 1e3
        self._since = now

    @property
    def total_ms(self) -> float:
        return sum(self.ms.values())

    def header(self) -> str:
        """As Server-Timing has it: ``signal;dur=0.412, parse;dur=0.021``."""
        return ", ".join(f"{stage};dur={ms:.3f}" for stage, ms in self.ms.items())
