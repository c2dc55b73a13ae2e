"""Who sends requests to the simulated queue, and when: open and closed loops."""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

ARRIVAL, QUEUED, FREE, DUE = range(4)  # kinds of events; at the same moment an arrival comes first


class Traffic(Protocol):
    """Who sends when. Requests are numbered; request i's service time is drawn at ``shares[i]`` under every policy."""

    @property
    def shares(self) -> np.ndarray: ...

    def first_arrivals(self) -> list[tuple[float, int, int]]:
        """Return what arrives whatever the server does, as events (time in ms, ARRIVAL, request), ascending."""

    def next_arrival(self, request: int, answered_ms: float) -> tuple[float, int, int] | None:
        """Return the arrival that follows from an answer, if one does."""

    def users(self, arrival_ms: np.ndarray, answered_ms: np.ndarray) -> np.ndarray:
        """Return how many users there are at each arrival."""


@dataclass(frozen=True, kw_only=True)
class OpenLoop:
    """Requests at given times, however fast the server answers.

    Attributes:
        arrival_ms: [requests], ascending.
        seed: of the service times.
    """

    arrival_ms: np.ndarray
    seed: int = 0

    @cached_property
    def shares(self) -> np.ndarray:
        return np.random.default_rng(self.seed).random(len(self.arrival_ms))

    def first_arrivals(self) -> list[tuple[float, int, int]]:
        return [(time_ms, ARRIVAL, request) for request, time_ms in enumerate(self.arrival_ms.tolist())]

    def next_arrival(self, request: int, answered_ms: float) -> None:
        return None

    def users(self, arrival_ms: np.ndarray, answered_ms: np.ndarray) -> np.ndarray:
        """Requests in flight, the arriving one included."""
        return np.arange(1, len(arrival_ms) + 1) - np.searchsorted(np.sort(answered_ms), arrival_ms, side="right")


@dataclass(frozen=True, kw_only=True)
class ClosedLoop:
    """Users who send, wait for the answer, pause and send again: the paper's rush.

    They come one after another at equal distances over ``ramp_ms``. User u's i-th pause and service time are the same
    under every policy.

    Attributes:
        user_count: at the peak.
        duration_ms: nothing is sent from then on.
        ramp_ms: time in which users grow to their full number.
        pause_ms: shortest and longest pause, uniform between; the shortest is above 0.
        seed: of pauses and service times.
    """

    user_count: int
    duration_ms: float
    ramp_ms: float
    pause_ms: tuple[float, float] = (1000.0, 3000.0)
    seed: int = 0

    @cached_property
    def each(self) -> int:
        """Requests that a user could send at most: user u's are numbered from u * each."""
        return int(self.duration_ms / self.pause_ms[0]) + 1

    @cached_property
    def pauses(self) -> list[float]:
        """Pause in ms after each request."""
        random = np.random.default_rng([self.seed, 1])
        return random.uniform(*self.pause_ms, self.user_count * self.each).tolist()

    @cached_property
    def shares(self) -> np.ndarray:
        return np.random.default_rng(self.seed).random(self.user_count * self.each)

    @cached_property
    def start_ms(self) -> np.ndarray:
        """When each user comes."""
        return np.arange(self.user_count) * self.ramp_ms / self.user_count

    def first_arrivals(self) -> list[tuple[float, int, int]]:
        return [(time_ms, ARRIVAL, user * self.each) for user, time_ms in enumerate(self.start_ms.tolist())
                if time_ms < self.duration_ms]  # fmt: skip

    def next_arrival(self, request: int, answered_ms: float) -> tuple[float, int, int] | None:
        time_ms = answered_ms + self.pauses[request]
        return (time_ms, ARRIVAL, request + 1) if time_ms < self.duration_ms else None

    def users(self, arrival_ms: np.ndarray, answered_ms: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.start_ms, arrival_ms, side="right")
