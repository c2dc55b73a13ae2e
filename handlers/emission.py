"""Publish the report of a batch as TorchServe metrics, with the names of metrics.yaml and times in seconds."""

from typing import Any

from ts.metrics.dimension import Dimension
from ts.metrics.metric_type_enum import MetricTypes

from elasticlm.model.structure import level_name
from elasticlm.serving.telemetry import BatchReport


def emit(metrics: Any, report: BatchReport) -> None:
    """Write the metrics of a batch to TorchServe, one line per metric; unchanged counters are left out."""
    gauges = (
        ("elastic_queue_depth", report.queue_depth, "count"),
        ("elastic_workers", report.workers, "count"),
        ("elastic_turnaround_seconds", round(report.turnaround_s, 6), "s"),
    )
    for name, value, unit in gauges:
        metrics.add_metric(name, value, unit, metric_type=MetricTypes.GAUGE)
    seconds = round(report.service_s, 6)
    metrics.add_metric("elastic_service_seconds", seconds, "s", metric_type=MetricTypes.HISTOGRAM)
    for level, count in report.levels.items():
        metrics.add_counter("elastic_answers_total", count, dimensions=[Dimension("elastic_level", level_name(level))])
    for code, count in report.errors.items():
        metrics.add_counter("elastic_errors_total", count, dimensions=[Dimension("code", code)])
    counters = (
        ("elastic_work_seconds_total", round(report.work_s, 6)),
        ("elastic_deadline_misses_total", report.misses),
        ("elastic_request_start_ignored_total", report.ignored_starts),
    )
    for name, value in counters:
        if value:
            metrics.add_counter(name, value)
