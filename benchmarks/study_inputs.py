"""What a policy study is about: service times and quality of the levels, policies, traffic."""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from elasticlm.benchmarks.arrivals import RAMP, at_load, open_arrivals_s
from elasticlm.benchmarks.queue_server import Server
from elasticlm.benchmarks.queue_traffic import ClosedLoop, OpenLoop
from elasticlm.benchmarks.served_archive import Archive
from elasticlm.benchmarks.service_times import PairTimes, ServiceTimes, Times
from elasticlm.command import say
from elasticlm.errors import InputError
from elasticlm.model.folder import QUALITY_FILE
from elasticlm.model.structure import Choice, level_name
from elasticlm.schedule.cascade import PAIRS_FILE, PairTable
from elasticlm.schedule.policies import Policy, parse_policy

TimesT = TypeVar("TimesT", ServiceTimes, PairTimes)
SERVED = ("batch_size", "workers", "max_batch_delay_ms")  # options that an archive has values of its own for


@dataclass(frozen=True)
class Quality:
    """What an answer of each level is worth: NaN for all where nobody measured it."""

    measure: str
    values: dict[Choice, float]

    @property
    def known(self) -> bool:
        return not any(map(math.isnan, self.values.values()))

    def of(self, levels: Sequence[Choice]) -> np.ndarray:
        return np.array([self.values[level] for level in levels])


def read_archive(options: argparse.Namespace, folder: Path) -> tuple[Times, Quality]:
    """Unpack the archive into the folder; return its service times and quality, and fill in what it is served with."""
    archive = Archive.unpack(options.archive, folder)
    for name in SERVED:
        if getattr(options, name) is None:
            setattr(options, name, getattr(archive, name))
    options.budget = options.budget or archive.handler.get("latency_budget_ms")
    if archive.is_pipeline and (options.judged_on or options.measure):
        raise InputError(f"--judged-on, --measure: the quality of a pipeline is that of its {PAIRS_FILE}")
    if archive.is_pipeline:
        say("loading both models and the index, for the length of lists and the time of a search")
    table = archive.read_times()
    if isinstance(table, PairTable):
        pairs = kept_levels(PairTimes(table), options.levels)
        if options.quality is None:
            measures = {pair.measure for pair in pairs.pairs.values()}
            values: dict[Choice, float] = {level: pair.quality for level, pair in pairs.pairs.items()}
            return pairs, Quality(f"{measures.pop()} of {PAIRS_FILE}", values)
        return pairs, read_quality(folder, options.quality, None, None, pairs.levels)
    times = kept_levels(ServiceTimes(table), options.levels)
    return times, read_quality(archive.artifact, options.quality, options.judged_on, options.measure, times.levels)


def kept_levels(table: TimesT, levels: Sequence[Choice] | None) -> TimesT:
    if levels is None:
        return table
    table.check_levels(levels)
    return table.keeping(levels)


def parse_policies(texts: Sequence[str] | None, budget_ms: float | None, levels: Sequence[Choice]) -> dict[str, Policy]:
    """Return the policies by name; raises InputError for a duplicate or one that names a level that is not there."""
    texts = texts or ["deadline", "slack", "queue", f"fixed:{level_name(levels[0])}", f"fixed:{level_name(levels[-1])}"]
    policies = {}
    for policy in (parse_policy(text, default_budget_ms=budget_ms) for text in texts):
        policy.check(levels)
        if str(policy) in policies:
            raise InputError(f"--policies {' '.join(texts)}: duplicate policy {policy}")
        policies[str(policy)] = policy
    return policies


def read_quality(
    model: Path, given: dict[Choice, float] | None, judged_on: str | None, measure: str | None, levels: Sequence[Choice]
) -> Quality:
    """Return each level's quality: as given, else from quality.json, else NaN (with a line that says so)."""
    file = model / QUALITY_FILE
    if given is not None:
        if missing := [level_name(level) for level in levels if level not in given]:
            raise InputError(f"--quality: nothing for level {', '.join(missing)}")
        return Quality("quality as given", given)
    if not file.is_file():
        say(f"{file}: no such file, so that quality is unknown; give --quality LEVEL=VALUE,.. to have it judged")
        return Quality("quality unknown", dict.fromkeys(levels, math.nan))
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        judged_on = judged_on or next(iter(found))
        if judged_on not in found:
            raise InputError(f"--judged-on {judged_on}: {file} holds {', '.join(found)}")
        metrics = found[judged_on]["metrics"]
        measure = measure or next(iter(metrics[level_name(levels[0])]))
        if measure not in metrics[level_name(levels[0])]:
            raise InputError(f"--measure {measure}: {file} holds {', '.join(metrics[level_name(levels[0])])}")
        return Quality(
            f"{measure} on {judged_on}", {level: float(metrics[level_name(level)][measure]) for level in levels}
        )
    except InputError:
        raise
    except KeyError as error:
        raise InputError(f"{file}: nothing for {error} under {judged_on}; expected every level of the table") from None
    except (ValueError, TypeError, AttributeError, IndexError, StopIteration):
        raise InputError(f"{file}: not what `elasticlm evaluate --save` writes") from None


def build_traffic(spec: str, options: argparse.Namespace, table: Times, server: Server) -> OpenLoop | ClosedLoop:
    """Return the traffic of a spec; raises InputError."""
    kind, _, argument = spec.partition(":")
    if kind == "rush":
        if not argument.isdecimal() or not int(argument):
            raise InputError(f"arrivals {spec!r}: expected rush:USERS, a whole number above 0")
        if options.load:
            raise InputError(f"--load goes with open loops alone; the load of {spec} is its number of users")
        duration_ms = 1000 * options.duration
        return ClosedLoop(
            user_count=int(argument), duration_ms=duration_ms, ramp_ms=RAMP * duration_ms, seed=options.seed
        )
    try:
        times_s = open_arrivals_s(spec, options.requests, options.seed)
    except InputError as error:
        raise InputError(f"{error}; or rush:USERS") from None
    if options.load:
        times_s = at_load(times_s, options.load * server.capacity_rps(table, table.levels[0]), spec)
    arrival_ms = 1000 * times_s
    return OpenLoop(arrival_ms=arrival_ms, seed=options.seed)
