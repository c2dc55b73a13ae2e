"""When requests arrive in an open loop: recorded arrivals, or a renewal process with Gamma gaps."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from elasticlm.errors import InputError

RAMP = 50 / 120  # share of the duration in which the users of the paper's rush grow to their full number
TIME_COLUMNS = ("timestamp", "time", "arrival", "t_s")


class Arrivals(Protocol):
    """Arrival times that do not depend on how fast the server answers."""

    def times_s(self, duration_s: float, seed: int) -> np.ndarray:
        """Return the arrival times in [0, duration_s), ascending."""


@dataclass(frozen=True)
class TraceArrivals:
    """The arrivals recorded in a CSV file, from its first one on.

    The time is in the column called timestamp, time, arrival or t_s (any case), else in the first one; numbers are
    seconds, anything else a date and time.
    """

    file: Path

    def times_s(self, duration_s: float, seed: int) -> np.ndarray:
        import pandas as pd

        rows = pd.read_csv(self.file)
        column = next((name for name in rows if str(name).strip().lower() in TIME_COLUMNS), rows.columns[0])
        stamps = rows[column]
        if not pd.api.types.is_numeric_dtype(stamps):
            moments = pd.to_datetime(stamps, errors="coerce", format="ISO8601")
            stamps = (moments - moments.min()).dt.total_seconds()
        if len(missing := np.flatnonzero(stamps.isna())):
            wanted = "seconds or a date and time"
            raise InputError(f"{self.file}, line {missing[0] + 2}: {column} is not a time; expected {wanted}")
        times = np.sort(stamps.to_numpy(dtype=float))
        times -= times[:1].sum()
        return times[times < duration_s]

    def __str__(self) -> str:
        return f"trace:{self.file}"


@dataclass(frozen=True)
class GammaArrivals:
    """Independent gaps with a Gamma distribution: mean 1 / rate, coefficient of variation cv (1 is Poisson).

    >>> len(GammaArrivals(rate_rps=100, cv=1).times_s(duration_s=50, seed=0))
    4913
    """

    rate_rps: float
    cv: float = 1.0

    def times_s(self, duration_s: float, seed: int) -> np.ndarray:
        random = np.random.default_rng(seed)
        shape, scale = 1 / self.cv**2, self.cv**2 / self.rate_rps
        times = np.empty(0)
        while not len(times) or times[-1] < duration_s:
            gaps = random.gamma(shape, scale, size=1024)
            times = np.concatenate([times, times[-1:].sum() + np.cumsum(gaps)])
        return times[times < duration_s]

    def __str__(self) -> str:
        return f"poisson:{self.rate_rps:g}" if self.cv == 1 else f"gamma:{self.rate_rps:g},{self.cv:g}"


def parse_arrivals(spec: str) -> Arrivals:
    """Return the arrivals written trace:FILE.csv, poisson:RATE or gamma:RATE,CV (RATE in requests per second)."""
    kind, _, argument = spec.partition(":")
    if kind == "trace":
        if not Path(argument).is_file():
            raise InputError(f"arrivals {spec!r}: no such file: {argument}")
        return TraceArrivals(Path(argument))
    expected = {"poisson": 1, "gamma": 2}.get(kind)
    try:
        numbers = [float(number) for number in argument.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != expected or not all(0 < number < np.inf for number in numbers):
        raise InputError(
            f"arrivals {spec!r}: expected trace:FILE.csv, poisson:RATE or gamma:RATE,CV; RATE in requests per second"
        )
    return GammaArrivals(*numbers)


def open_arrivals_s(spec: str, requests: int, seed: int) -> np.ndarray:
    """Return the arrival times in s of so many requests: a trace's busiest window, the first of the others.

    Raises InputError where the spec or its file is none.
    """
    arrivals = parse_arrivals(spec)
    if isinstance(arrivals, GammaArrivals):
        duration_s = requests / arrivals.rate_rps
        while len(times_s := arrivals.times_s(duration_s, seed)) < requests:
            duration_s *= 2
        return times_s[:requests]
    try:
        times_s = arrivals.times_s(np.inf, seed)
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"arrivals {spec!r}: not a CSV file of arrivals ({error})") from None
    if not len(times_s):
        raise InputError(f"arrivals {spec!r}: no arrival in it")
    return busiest_window(times_s, requests)


def busiest_window(times_s: np.ndarray, requests: int) -> np.ndarray:
    """Return the consecutive arrivals that took the least time, from 0 on.

    >>> busiest_window(np.array([0.0, 5.0, 6.0, 6.5, 9.0]), 3).tolist()
    [0.0, 1.0, 1.5]
    """
    requests = min(requests, len(times_s))
    begin = int(np.argmin(times_s[requests - 1 :] - times_s[: len(times_s) - requests + 1]))
    return times_s[begin : begin + requests] - times_s[begin]


def at_load(times_s: np.ndarray, rate_rps: float, spec: str) -> np.ndarray:
    """Return the arrivals with the time axis stretched or shrunk to this mean rate; bursts keep their form."""
    if not times_s[-1] > times_s[0]:
        raise InputError(f"arrivals {spec!r}: a load needs arrivals at two different times at least")
    return (times_s - times_s[0]) * mean_rate_rps(times_s) / rate_rps


def mean_rate_rps(times_s: np.ndarray) -> float:
    """Return the requests per second between the first and the last arrival."""
    return float((len(times_s) - 1) / (times_s[-1] - times_s[0]))
