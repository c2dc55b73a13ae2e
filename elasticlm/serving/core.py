"""The serving core: a batch of raw requests goes in, responses come out. It contains no server.

An adapter turns its server's batch into RawRequests, says what is known of the queue (a Backlog), sends the Responses,
and publishes the BatchReport. elasticlm.handlers does this for TorchServe.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path

from elasticlm.model.structure import Choice, level_name
from elasticlm.schedule.correction import TableRatio
from elasticlm.schedule.load import Load
from elasticlm.serving.backlog import Backlog
from elasticlm.serving.engine import Answer, Engine
from elasticlm.serving.live_settings import LiveSettings
from elasticlm.serving.requests import (
    INTERNAL,
    AcceptedRequest,
    Request,
    RequestError,
    accept,
    rows_of,
)
from elasticlm.serving.responses import encoded
from elasticlm.serving.settings import Settings
from elasticlm.serving.signals import StartHeaders
from elasticlm.serving.stages import Stages
from elasticlm.serving.telemetry import BatchReport, Work
from elasticlm.serving.two_stage import open_archive
from elasticlm.serving.wire import RawRequest, Response

logger = logging.getLogger(__name__)

Read = AcceptedRequest | RequestError
"""A request after parsing: accepted, or the reason why not."""


class ServingCore:
    """Answers batches of raw requests at the level that the policy chooses for the current load.

    Args:
        engine: answers accepted requests.
        settings: the settings of the archive; a live file may change some of them while the worker runs.
        batch_size: B, the maximum number of requests that the server puts into one batch.
    """

    def __init__(self, engine: Engine, settings: Settings, *, batch_size: int = 1) -> None:
        self.engine, self.batch_size = engine, batch_size
        self._settings = LiveSettings(settings, engine.adopt)
        self._work, self._starts, self._ratio = Work(engine.row_ms), StartHeaders(), TableRatio()
        self._last_level: Choice | None = None

    @classmethod
    def open(cls, folder: Path, settings: Settings, *, batch_size: int = 1) -> "ServingCore":
        """Load an unpacked archive and run every level once. Raises InputError if its parts do not fit together."""
        return cls(open_archive(folder, settings), settings, batch_size=batch_size)

    def handle(
        self, requests: Sequence[RawRequest], backlog: Backlog, now_s: float
    ) -> tuple[list[Response], BatchReport]:
        """Return the response to each request of a batch, in order, and a report of the batch.

        No request affects another: one that is refused gets its own status, and if answering a batch raises, its
        requests are answered one by one, so that only the cause of the error is answered with 500.

        Args:
            backlog: what is known about the queue behind this batch.
            now_s: the current time in seconds since 1970, for ages from X-Request-Start.
        """
        stages = Stages()
        settings = self._settings()
        headers = [{name.lower(): value for name, value in request.headers.items()} for request in requests]
        starts = [by_name.get("x-request-start") if settings.trust_request_start else None for by_name in headers]
        ages_ms, ignored_starts = self._starts.ages_ms(
            starts, backlog.ages_ms or (None,) * len(requests), now_s,
            was_idle=backlog.was_idle, budget_ms=settings.budget_ms,
        )  # fmt: skip
        read = [self._read(request.body, by_name, age_ms, settings)
                for request, by_name, age_ms in zip(requests, headers, ages_ms, strict=True)]  # fmt: skip
        stages.done("parse")
        outcomes = self._answers(read, backlog, settings, stages)
        encoded_outcomes = [_encoded(*both) for both in zip(read, outcomes, strict=True)]
        stages.done("encode")
        service_ms = backlog.took_ms + stages.total_ms
        shared = {"X-Elastic-Queue-Depth": str(backlog.queue_depth), "X-Elastic-Service-Ms": f"{service_ms:.3f}"}
        timing = f"signal;dur={backlog.took_ms:.3f}, {stages.header()}"
        waits = [{"Server-Timing": f"wait;dur={age_ms or 0.0:.3f}, {timing}"} for age_ms in ages_ms]
        responses = [Response(encoded.status, shared | wait | encoded.headers, encoded.body)
                     for encoded, wait in zip(encoded_outcomes, waits, strict=True)]  # fmt: skip
        report = self._report(read, [encoded.outcome for encoded in encoded_outcomes], settings, backlog, BatchReport(
            queue_depth=backlog.queue_depth, workers=backlog.workers, turnaround_s=backlog.turnaround_ms / 1e3,
            service_s=service_ms / 1e3, table_ms=sum(stages.ms.get(name, 0.0) for name in self.engine.table_stages),
            ignored_starts=ignored_starts, probe_up=backlog.probe_up, int8_fallbacks=self.engine.int8_fallbacks,
        ))  # fmt: skip
        logger.debug("batch of %d: %s, %s", len(requests), report, timing)
        return responses, report

    def _read(self, body: bytes, headers: Mapping[str, str], age_ms: float | None, settings: Settings) -> Read:
        try:
            return accept(body, headers, age_ms, settings, self.engine.service)
        except RequestError as error:
            return error
        except Exception:
            return _internal_error("reading a request")

    def _answers(
        self, read: Sequence[Read], backlog: Backlog, settings: Settings, stages: Stages
    ) -> list[Answer | RequestError]:
        """Return the outcome of every request: errors as they are, the others as the engine decides."""
        accepted = [item for item in read if isinstance(item, AcceptedRequest)]
        if not accepted:
            return [item for item in read if isinstance(item, RequestError)]
        ages_ms = backlog.ages_ms or (None,) * len(read)
        counted = [age for item, age in zip(read, ages_ms, strict=True) if isinstance(item, AcceptedRequest)]
        load = Load(
            queue_depth=backlog.queue_depth, queue_full=backlog.queue_full, workers=backlog.workers,
            batch=len(accepted), batch_size=self.batch_size,
            overhead_ms=settings.overhead_ms, turnaround_ms=backlog.turnaround_ms, refusal_ms=backlog.refusal_ms,
            table_ratio=self._ratio.value if settings.correct_table else 1.0,
            arrivals_rps=backlog.arrivals_rps, last_level=self._last_level, budget_ms=settings.budget_ms,
            ages_ms=tuple(item.age_ms for item in accepted), budgets_ms=tuple(item.budget_ms for item in accepted),
            counted_ages_ms=None if settings.trust_for_batch else tuple(counted),
            waiting_ages_ms=backlog.waiting_ages_ms, waiting_rows=backlog.waiting_rows,
        )  # fmt: skip
        answers = iter(self._answered([item.request for item in accepted], load, stages))
        outcomes = [next(answers) if isinstance(item, AcceptedRequest) else item for item in read]
        self._last_level = next((each.level for each in outcomes if isinstance(each, Answer)), self._last_level)
        return outcomes

    def _answered(self, requests: Sequence[Request], load: Load, stages: Stages) -> Sequence[Answer | RequestError]:
        """Answer the requests together, or one by one if that raises."""
        try:
            return self.engine.answer(requests, load, stages)
        except Exception:
            stages.done("failed")
            if len(requests) == 1:
                return [_internal_error("answering a request")]
            logger.warning("answering a batch of %d failed; its requests are answered one by one", len(requests))
        outcomes: list[Answer | RequestError] = []
        for i, request in enumerate(requests):
            behind = (*load.ages_ms[i + 1 :], *load.waiting_ages_ms)
            depth = load.queue_depth + len(requests) - i - 1
            alone = replace(load.of_requests([i]), queue_depth=depth, waiting_ages_ms=behind)
            outcomes += self._answered([request], alone, stages)
        return outcomes

    def _report(
        self,
        read: Sequence[Read],
        outcomes: Sequence[Answer | RequestError],
        settings: Settings,
        backlog: Backlog,
        measured: BatchReport,
    ) -> BatchReport:
        """Complete the report of a batch with what became of its requests, and of those that the queue refused."""
        taken_ms = 1e3 * measured.service_s + settings.overhead_ms
        answers = [outcome for outcome in outcomes if isinstance(outcome, Answer)]
        if len(answers) == len(outcomes):  # errors take time of their own
            self._ratio.add(measured.table_ms, sum(answer.expected_ms for answer in answers))
        misses: Counter[str] = Counter()
        work_ms = 0.0
        for item, outcome in zip(read, outcomes, strict=True):
            if isinstance(item, AcceptedRequest):
                finished_ms = (item.age_ms or 0.0) + taken_ms
                if isinstance(outcome, RequestError) or finished_ms > item.budget_ms:
                    by_client = item.budget_ms < settings.budget_ms and finished_ms <= settings.budget_ms
                    misses["client" if by_client else "server"] += 1
                rows = rows_of(item.request)
                work_ms += self._work.add(rows, outcome.largest_ms if isinstance(outcome, Answer) else None)
        errors = Counter(outcome.code for outcome in outcomes if isinstance(outcome, RequestError))
        if backlog.refused_rows:
            errors["queue_full"] += len(backlog.refused_rows)
            misses["server"] += len(backlog.refused_rows)
            work_ms += sum(self._work.add(rows, None) for rows in backlog.refused_rows)
        return replace(
            measured,
            work_s=work_ms / 1e3,
            table_ratio=self._ratio.value,
            levels=Counter(answer.level for answer in answers),
            errors=errors,
            misses=misses,
        )


@dataclass(frozen=True)
class EncodedOutcome:
    """The outcome of a request, and what of its response depends on it alone."""

    outcome: Answer | RequestError
    status: HTTPStatus
    headers: dict[str, str]
    body: bytes


def _encoded(item: Read, outcome: Answer | RequestError) -> EncodedOutcome:
    """Encode an outcome; an answer that cannot be encoded becomes an error."""
    binary = isinstance(item, AcceptedRequest) and item.binary
    try:
        body, content_type = encoded(outcome, binary=binary)
    except Exception:
        return _encoded(item, _internal_error("encoding an answer"))
    headers = {"Content-Type": content_type}
    if isinstance(outcome, RequestError):
        return EncodedOutcome(outcome, HTTPStatus(outcome.status), headers, body)
    headers["X-Elastic-Level"] = level_name(outcome.level)
    if outcome.tokens:
        headers["X-Elastic-Tokens"] = str(outcome.tokens)
    if binary and "truncated" in outcome.body:
        headers["X-Elastic-Truncated"] = "true"
    return EncodedOutcome(outcome, HTTPStatus.OK, headers, body)


def _internal_error(doing: str) -> RequestError:
    """Log the current exception, and return the error for the client, which does not contain its text."""
    logger.exception("%s failed", doing)
    return RequestError("internal", f"{doing} failed; the server's log has the reason", INTERNAL)
