"""Publish the reports of batches through Ray's metrics, under the names of metrics.yaml behind Ray's prefix ``ray_``.

Ray Serve adds the tags application, deployment (the archive's name) and replica to each.
"""

import math
import time
from collections.abc import Callable

from ray.serve.metrics import Counter, Gauge, Histogram

from elasticlm.model.structure import level_name
from elasticlm.serving.telemetry import BatchReport

GAUGES_EVERY_S = 1.0
"""Gauges are written this often at most."""
BUCKETS_S = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5]
"""Upper bounds of the histogram of service times."""


class RayEmitter:
    """Writes the metrics of batches. It has to be made in a replica."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._gauges_at = clock, -math.inf

        def counter(name: str, description: str, *labels: str) -> Counter:
            return Counter(name, description=description, tag_keys=labels)  # type: ignore[arg-type]

        def gauge(name: str, description: str) -> Gauge:
            return Gauge(name, description=description)

        self._answers = counter("elastic_answers_total", "Requests answered, by level.", "elastic_level")
        self._errors = counter("elastic_errors_total", "Requests answered with an error, by code.", "code")
        self._misses = counter("elastic_deadline_misses_total", "Requests not answered within their budget.", "budget")
        self._work = counter("elastic_work_seconds_total", "Work that has arrived, in seconds at the largest level.")
        self._shed = counter("elastic_shed_total", "Requests refused because they would have been late.")
        self._ignored = counter("elastic_request_start_ignored_total", "X-Request-Start headers that were not valid.")
        self._service = Histogram("elastic_service_seconds", "Service time of a batch.", BUCKETS_S)
        self._depth = gauge("elastic_queue_depth", "Requests behind the batch.")
        self._turnaround = gauge("elastic_turnaround_seconds", "Time per batch beyond the latency table's.")
        self._ratio = gauge("elastic_table_ratio", "Measured service times relative to the latency table.")
        self._fallbacks = gauge("elastic_int8_fallbacks", "Levels that run in fp32 because int8 is too inaccurate.")

    def emit(self, report: BatchReport) -> None:
        """Write the metrics of a batch."""
        now_s = self._clock()
        if now_s >= self._gauges_at:
            self._gauges_at = now_s + GAUGES_EVERY_S
            self._depth.set(report.queue_depth)
            self._turnaround.set(report.turnaround_s)
            self._ratio.set(report.table_ratio)
            self._fallbacks.set(report.int8_fallbacks)
        self._service.observe(report.service_s)
        for level, count in report.levels.items():
            self._answers.inc(count, {"elastic_level": level_name(level)})
        for code, count in report.errors.items():
            self._errors.inc(count, {"code": code})
        for budget, count in report.misses.items():
            self._misses.inc(count, {"budget": budget})
        for metric, total in ((self._work, report.work_s), (self._shed, report.errors["late"]),
                              (self._ignored, report.ignored_starts)):  # fmt: skip
            if total:
                metric.inc(total)
