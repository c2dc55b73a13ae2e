"""The handler class that TorchServe calls: it reads a batch and its headers, and returns bodies, statuses and headers.

The archive holds this file at its root, next to `elasticlm/`, which contains the rest of the code.
"""

import os
import sys
from pathlib import Path

if __name__ == "elastic_handler":  # in an archive: use its packages, not other copies on the path
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the archive contains the model
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the settings control the number of threads

import logging
import time
from collections import Counter
from http import HTTPStatus
from typing import Any

from ts.context import Context

from elasticlm.handlers.emission import emit
from elasticlm.handlers.probe import ManagementProbe
from elasticlm.model.structure import level_name
from elasticlm.schedule.load import Load
from elasticlm.serving.engine import Answer
from elasticlm.serving.live_settings import LiveSettings
from elasticlm.serving.requests import AcceptedRequest, RequestError, accept
from elasticlm.serving.responses import encoded
from elasticlm.serving.settings import Settings
from elasticlm.serving.signals import QueueSignal, known_ages_ms
from elasticlm.serving.stages import Stages
from elasticlm.serving.telemetry import BatchReport, Demand
from elasticlm.serving.two_stage import open_archive

logger = logging.getLogger(__name__)


class ElasticHandler:
    """Answers each batch at the level that the policy chooses for the current load."""

    def initialize(self, context: Context) -> None:
        """Load the archive and run every level once; the worker is READY when this returns."""
        config = context.model_yaml_config or {}
        self.settings = Settings.from_section(config.get("handler"))
        self.batch_size = context.system_properties["batch_size"] or 1
        url, key_file = self.settings.management_url, self.settings.management_key_file
        probe = ManagementProbe(url, context.model_name, key_file=key_file) if url else None
        self.queue = QueueSignal(
            probe,
            batch_size=self.batch_size,
            workers=config.get("minWorkers") or 1,
            batch_delay_s=(config.get("maxBatchDelay") or 0) / 1e3,
        )
        self.answerer: Any = open_archive(Path(context.system_properties["model_dir"]), self.settings)
        self.live = LiveSettings(self.settings, self.answerer.adopt)
        self.demand = Demand()
        if probe:
            probe()  # opens the connection before the first request

    def handle(self, data: list[dict[str, Any]], context: Context) -> list[bytes]:
        """Answer a batch. A rejected request gets its own status and does not affect the others."""
        stages = Stages()
        self.settings = self.live()
        backlog = self.queue.batch_came(len(data))
        stages.done("signal")
        headers = [_headers(context, i) for i in range(len(data))]
        starts = [by_name.get("x-request-start") for by_name in headers]
        ages_ms, ignored_starts = known_ages_ms(starts, backlog.ages_ms, time.time())
        read = [self._read(*received) for received in zip(data, headers, ages_ms, strict=True)]
        accepted = [outcome for outcome in read if isinstance(outcome, AcceptedRequest)]
        stages.done("parse")
        load = Load(
            queue_depth=backlog.queue_depth,
            batch_size=self.batch_size,
            workers=backlog.workers,
            overhead_ms=self.settings.overhead_ms,
            turnaround_ms=backlog.turnaround_ms,
            ages_ms=tuple(request.age_ms for request in accepted),
            budgets_ms=tuple(request.budget_ms for request in accepted),
        )
        answers = iter(self.answerer.answer([request.request for request in accepted], load, stages))
        outcomes = [next(answers) if isinstance(item, AcceptedRequest) else item for item in read]
        binary = [isinstance(item, AcceptedRequest) and item.binary for item in read]
        bodies = [encoded(outcome, binary=as_bytes) for outcome, as_bytes in zip(outcomes, binary, strict=True)]
        stages.done("encode")
        service_ms, timing = stages.total_ms, stages.header()
        for i, outcome in enumerate(outcomes):
            context.set_response_content_type(i, bodies[i][1])
            context.set_response_header(i, "X-Elastic-Queue-Depth", str(backlog.queue_depth))
            context.set_response_header(i, "X-Elastic-Service-Ms", f"{service_ms:.3f}")
            context.set_response_header(i, "Server-Timing", f"wait;dur={ages_ms[i]:.3f}, {timing}")
            if isinstance(outcome, Answer):
                context.set_response_header(i, "X-Elastic-Level", level_name(outcome.level))
                if binary[i] and "truncated" in outcome.body:
                    context.set_response_header(i, "X-Elastic-Truncated", "true")
            status = HTTPStatus.OK if isinstance(outcome, Answer) else HTTPStatus(outcome.status)
            context.set_response_status(status.value, status.phrase, i)
        report = self._report(read, outcomes, backlog.queue_depth, service_ms, ignored_starts)
        emit(context.metrics, report)
        logger.debug("batch of %d: %s, %s", len(data), report, timing)
        self.queue.batch_done(stages.ms.get("forward", 0.0))
        return [body for body, _ in bodies]

    def _report(
        self,
        read: list[AcceptedRequest | RequestError],
        outcomes: list[Answer | RequestError],
        queue_depth: int,
        service_ms: float,
        ignored_starts: int,
    ) -> BatchReport:
        answers = [outcome for outcome in outcomes if isinstance(outcome, Answer)]
        errors = [outcome for outcome in outcomes if isinstance(outcome, RequestError)]
        taken_ms = service_ms + self.settings.overhead_ms
        late = sum(isinstance(item, AcceptedRequest) and item.age_ms + taken_ms > item.budget_ms for item in read)
        return BatchReport(
            queue_depth=queue_depth,
            service_s=service_ms / 1e3,
            demand=self.demand.add(sum(answer.largest_ms for answer in answers)),
            levels=Counter(answer.level for answer in answers),
            errors=Counter(error.code for error in errors),
            misses=late + sum(error.status == HTTPStatus.GATEWAY_TIMEOUT for error in errors),
            ignored_starts=ignored_starts,
        )

    def _read(self, item: dict[str, Any], headers: dict[str, str], age_ms: float) -> AcceptedRequest | RequestError:
        try:
            return accept(item, headers, age_ms, self.settings, self.answerer.service)
        except RequestError as error:
            return error


def _headers(context: Context, i: int) -> dict[str, str]:
    """Return the headers of request ``i``, without the content types of its parts, which TorchServe adds as dicts."""
    given = context.get_all_request_header(i)
    return {name.lower(): value for name, value in given.items() if isinstance(value, str)}
