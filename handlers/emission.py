"""Publish the reports of batches as TorchServe metrics, with the names of metrics.yaml and times in seconds."""

import math
import time
from collections.abc import Callable
from typing import Any

from ts.metrics.dimension import Dimension
from ts.metrics.metric_type_enum import MetricTypes

from elasticlm.model.structure import level_name
from elasticlm.serving.telemetry import BatchReport

GAUGES_EVERY_S = 1.0
"""Gauges are written this often at most, because TorchServe's frontend parses every line on the same cores."""


class Emitter:
    """Writes the metrics of batches to TorchServe, one line per metric; counters that do not change are left out."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._gauges_at = clock, -math.inf

    def emit(self, metrics: Any, report: BatchReport) -> None:
        """Write the metrics of a batch."""
        now_s = self._clock()
        if now_s >= self._gauges_at:
            self._gauges_at = now_s + GAUGES_EVERY_S
            _emit_gauges(metrics, report)
        seconds = round(report.service_s, 6)
        metrics.add_metric("elastic_service_seconds", seconds, "s", metric_type=MetricTypes.HISTOGRAM)
        labelled = (
            ("elastic_answers_total", "elastic_level", {level_name(level): n for level, n in report.levels.items()}),
            ("elastic_errors_total", "code", report.errors),
            ("elastic_deadline_misses_total", "budget", report.misses),
        )
        for name, label, counts in labelled:
            for value, count in counts.items():
                metrics.add_counter(name, count, dimensions=[Dimension(label, value)])
        counters = (
            ("elastic_work_seconds_total", round(report.work_s, 6)),
            ("elastic_shed_total", report.errors["late"]),
            ("elastic_request_start_ignored_total", report.ignored_starts),
        )
        for name, total in counters:
            if total:
                metrics.add_counter(name, total)


def _emit_gauges(metrics: Any, report: BatchReport) -> None:
    gauges = [
        ("elastic_queue_depth", report.queue_depth, "count"),
        ("elastic_workers", report.workers, "count"),
        ("elastic_turnaround_seconds", round(report.turnaround_s, 6), "s"),
        ("elastic_table_ratio", round(report.table_ratio, 4), "ratio"),
        ("elastic_int8_fallbacks", report.int8_fallbacks, "count"),
    ]
    if report.probe_up is not None:
        gauges.append(("elastic_probe_up", int(report.probe_up), "count"))
    for name, value, unit in gauges:
        metrics.add_metric(name, value, unit, metric_type=MetricTypes.GAUGE)
