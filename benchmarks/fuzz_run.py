"""Sending generated requests to the core and to the real server, and checking what comes back (``elasticlm fuzz``)."""

import argparse
import base64
import contextlib
import gc
import http.client
import json
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from elasticlm.benchmarks.fuzz_bodies import ANSWERED, Case, Wire, make
from elasticlm.benchmarks.served_archive import Archive
from elasticlm.benchmarks.server import TorchServe
from elasticlm.command import print_result, print_table, progress
from elasticlm.errors import InputError
from elasticlm.files import new_folder
from elasticlm.machine import machine
from elasticlm.model.structure import level_name, parse_choice
from elasticlm.serving.backlog import Backlog
from elasticlm.serving.core import ServingCore
from elasticlm.serving.requests import JSON, RequestError, Service, accept
from elasticlm.serving.settings import Settings
from elasticlm.serving.wire import RawRequest

BATCH = 8
CONNECTIONS = 8
POLITE = 16
"""Number of different polite requests."""
MOST_DIFFERENCE = 1e-5
MOST_PARSE_MS = 100.0
"""Of processor time, because other processes use the machine too."""
KEPT_FAILURES = 100
WORDS = ("what", "is", "the", "river", "and", "how", "high", "are", "a", "cave", "of", "black", "stone", "in", "north")


@dataclass
class Findings:
    """Outcomes of generated requests, by kind; and what went wrong."""

    outcomes: dict[str, Counter[str]] = field(default_factory=dict)
    failures: list[dict[str, Any]] = field(default_factory=list)
    failed: int = 0
    polite: int = 0
    max_difference: float = 0.0
    parse_s: float = 0.0
    slowest: dict[str, float] = field(default_factory=dict)

    def add(self, case: Case, status: int, body: bytes) -> None:
        """Check the response to a generated request."""
        outcome = ANSWERED if status == 200 else _code(body)
        self.outcomes.setdefault(case.kind, Counter())[outcome] += 1
        right = outcome in case.allowed if case.allowed else outcome == ANSWERED or 400 <= status < 500
        if not right or not (status == 200 or 400 <= status < 500):
            self.fail(f"{case.kind}: {status} {outcome}, expected {sorted(case.allowed) or 'any 4xx'}", case)

    def add_polite(self, status: int, body: bytes, alone: Mapping[str, Any]) -> None:
        """Check the response to a polite request."""
        self.polite += 1
        difference = _difference(json.loads(body), alone) if status == 200 else float("inf")
        self.max_difference = max(self.max_difference, difference)
        if not difference <= MOST_DIFFERENCE:
            self.fail(f"polite: {status}, differs by {difference}", Case("polite", body))

    def fail(self, what: str, case: Case | None = None) -> None:
        """Record a failure, with the request unless there are many already."""
        self.failed += 1
        if len(self.failures) < KEPT_FAILURES:
            sent = {"body": base64.b64encode(case.body).decode(), "headers": dict(case.headers)} if case else {}
            self.failures.append({"what": what} | sent)

    def time_parse(self, case: Case, settings: Settings, service: Service) -> None:
        """Parse a request once more and record the processor time."""
        took_ms = _parse_ms(case, settings, service)
        self.parse_s += took_ms / 1e3
        if took_ms > self.slowest.get(case.kind, 0.0):
            self.slowest[case.kind] = took_ms
        if took_ms > MOST_PARSE_MS:
            self.fail(f"{case.kind}: {took_ms:.0f} ms to parse", case)

    def rows(self) -> list[dict[str, Any]]:
        """Return a row per kind."""
        return [
            {"kind": kind, "requests": counts.total(), "slowest ms": round(self.slowest.get(kind, 0.0), 2),
             "outcomes": ", ".join(f"{code} {count}" for code, count in counts.most_common())}
            for kind, counts in sorted(self.outcomes.items())
        ]  # fmt: skip

    def summary(self) -> dict[str, Any]:
        """Return everything but the failures themselves."""
        count = sum(counts.total() for counts in self.outcomes.values())
        codes: Counter[str] = sum(self.outcomes.values(), Counter())
        timed: dict[str, float] = {}
        if self.parse_s:
            timed = {"parse_rps": round(count / self.parse_s), "slowest_ms": round(max(self.slowest.values()), 3)}
        return {
            "requests": count, "codes": dict(codes.most_common()), "polite": self.polite,
            "polite_max_difference": self.max_difference, "failed": self.failed, **timed,
            "kinds": {kind: dict(counts) for kind, counts in sorted(self.outcomes.items())},
        }  # fmt: skip


def run_fuzz(options: argparse.Namespace) -> int:
    """Run what the options name."""
    findings: dict[str, Findings] = {}
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        archive = Archive.unpack(options.archive, Path(folder) / "archive")
        level = parse_choice(options.level) if options.level else archive.smallest
        if level not in archive.levels:
            offered = ", ".join(map(level_name, archive.levels))
            raise InputError(f"--level {options.level}: {options.archive} has the levels {offered}")
        handler = {"policy": f"fixed:{level_name(level)}", "latency_budget_ms": 1000.0, "late": "answer",
                   "trust_request_start": True, "trust_latency_budget": True}  # fmt: skip
        settings = Settings.of_section({**archive.handler, **handler})
        core = ServingCore.open(archive.bundle.folder, settings, batch_size=BATCH)
        gc.collect()
        gc.freeze()  # as the handler does
        wire = Wire(core.engine.service, settings, random.Random(options.seed))
        if options.core:
            findings["core"] = fuzz_core(core, wire, options.core)
        if options.server:
            polite = polite_requests(wire)
            alone = [json.loads(_ask_core(core, [request])[0][1]) for request in polite]
            findings["server"] = fuzz_server(archive, handler, wire, polite, alone, options.server, options.seed)
    result = {"machine": machine(), "seed": options.seed, "level": level_name(level),
              **{where: found.summary() for where, found in findings.items()}}  # fmt: skip
    with new_folder(options.output, overwrite=options.overwrite) as output:
        (output / "fuzz.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        failures = [{"where": where} | each for where, found in findings.items() for each in found.failures]
        lines = [json.dumps(each) + "\n" for each in failures]
        (output / "failures.jsonl").write_text("".join(lines), encoding="utf-8")
    for found in findings.values():
        print_table(found.rows())
    shown = {where: {name: value for name, value in found.summary().items() if name != "kinds"}
             for where, found in findings.items()}  # fmt: skip
    print_result({"output": str(options.output), "machine": machine(), **shown})
    return int(any(found.failed for found in findings.values()))


def polite_requests(wire: Wire) -> list[dict[str, Any]]:
    """Return some requests of plain words, of different lengths."""
    draw = random.Random(0)

    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(each) for each in value]
        return " ".join(draw.choices(WORDS, k=draw.randint(1, 30))) if isinstance(value, str) else value

    requests = [wire.valid() for _ in range(POLITE)]
    return [{name: value if name == "as" else plain(value) for name, value in request.items()} for request in requests]


def fuzz_core(core: ServingCore, wire: Wire, count: int) -> Findings:
    """Send so many generated requests to the core, in batches with one polite request each."""
    findings, draw = Findings(), random.Random(0)
    polite = polite_requests(wire)
    alone = [json.loads(_ask_core(core, [request])[0][1]) for request in polite]
    for _ in progress(range(-(-count // (BATCH - 1))), desc="core", unit="batch"):
        cases = [make(wire) for _ in range(BATCH - 1)]
        number, place = draw.randrange(POLITE), draw.randrange(BATCH)
        for case in cases:
            findings.time_parse(case, wire.settings, wire.service)
        try:
            responses = _ask_core(core, [*cases[:place], polite[number], *cases[place:]])
        except Exception as error:
            findings.fail(f"the core raised {error!r}; the first of its batch", cases[0])
            continue
        findings.add_polite(*responses.pop(place), alone[number])
        for case, response in zip(cases, responses, strict=True):
            findings.add(case, *response)
    return findings


def fuzz_server(
    archive: Archive,
    handler: Mapping[str, object],
    wire: Wire,
    polite: Sequence[Mapping[str, Any]],
    alone: Sequence[Mapping[str, Any]],
    count: int,
    seed: int,
) -> Findings:
    """Send so many generated requests to a TorchServe of this archive, over several connections, one of them polite."""
    findings, lock, done = Findings(), threading.Lock(), threading.Event()
    with TorchServe({archive.name: archive.bundle.folder}, batch_size=BATCH, max_batch_delay_ms=5,
                    handler=handler) as server:  # fmt: skip
        before = [worker["pid"] for worker in server.workers(archive.name)]
        left = iter(progress(range(count), desc="server", unit="request"))

        def ask_politely() -> None:
            client, draw = Client(server, archive.name), random.Random(0)
            while not done.is_set():
                number = draw.randrange(POLITE)
                status, body = client.ask(json.dumps(polite[number]).encode(), {})
                with lock:
                    findings.add_polite(status, body, alone[number])

        def fuzz(number: int) -> None:
            client, own = Client(server, archive.name), Wire(wire.service, wire.settings, random.Random(seed + number))
            while _next(left, lock):
                case = make(own)
                status, body = client.ask(case.body, case.headers)
                with lock:
                    findings.add(case, status, body)

        threads = [threading.Thread(target=fuzz, args=(number,)) for number in range(1, CONNECTIONS)]
        neighbour = threading.Thread(target=ask_politely)
        for thread in (neighbour, *threads):
            thread.start()
        for thread in threads:
            thread.join()
        done.set()
        neighbour.join()
        after = [worker["pid"] for worker in server.workers(archive.name)]
        if after != before:
            findings.fail(f"the worker was replaced: {before}, now {after}")
    return findings


class Client:
    """One connection to a server, opened again where the server closes it.

    Args:
        name: the model.
    """

    def __init__(self, server: TorchServe, name: str) -> None:
        self._connection = http.client.HTTPConnection(server.inference_url.removeprefix("http://"), timeout=60)
        self._path = f"/predictions/{name}"

    def ask(self, body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes]:
        """Return status and body of the response; status 0 and the reason if there is none."""
        try:
            self._connection.putrequest("POST", self._path)
            for name, value in {"Content-Type": JSON, "Content-Length": str(len(body)), **headers}.items():
                self._connection.putheader(name, value.encode("utf-8"))
            self._connection.endheaders(body)
            reply = self._connection.getresponse()
            return reply.status, reply.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            return 0, repr(error).encode()


def _next(left: Iterator[int], lock: threading.Lock) -> bool:
    with lock:
        return next(left, None) is not None


def _ask_core(core: ServingCore, requests: Sequence[Case | Mapping[str, Any]]) -> list[tuple[int, bytes]]:
    """Return status and body of the response to each request of a batch."""
    raw = [RawRequest(each.body, each.headers) if isinstance(each, Case) else RawRequest(json.dumps(each).encode())
           for each in requests]  # fmt: skip
    responses, _ = core.handle(raw, Backlog(), time.time())
    return [(response.status.value, response.body) for response in responses]


def _parse_ms(case: Case, settings: Settings, service: Service) -> float:
    headers = {name.lower(): value for name, value in case.headers.items()}
    started_s = time.thread_time()
    with contextlib.suppress(RequestError):
        accept(case.body, headers, None, settings, service)
    return (time.thread_time() - started_s) * 1e3


def _code(body: bytes) -> str:
    """Return the code of an error; what there is instead where it has none."""
    try:
        return str(json.loads(body)["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return f"no code: {body[:100]!r}"


def _difference(answer: Any, other: Any) -> float:
    """Return the largest difference of two answers' numbers; infinite if anything else differs."""
    if isinstance(answer, dict) and isinstance(other, dict) and answer.keys() == other.keys():
        return max((_difference(answer[name], other[name]) for name in answer), default=0.0)
    if isinstance(answer, list) and isinstance(other, list) and len(answer) == len(other):
        return max((_difference(*both) for both in zip(answer, other, strict=True)), default=0.0)
    if isinstance(answer, float) and isinstance(other, float):
        return abs(answer - other)
    return 0.0 if answer == other else float("inf")
