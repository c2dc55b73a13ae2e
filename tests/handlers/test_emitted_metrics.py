"""Metrics: what is emitted is listed for Prometheus, with the same dimensions."""

import json
import re
from collections import Counter
from pathlib import Path

import yaml

from elasticlm.handlers.emission import GAUGES_EVERY_S, Emitter
from elasticlm.serving.telemetry import BatchReport

LISTED = yaml.safe_load((Path(__file__).parents[2] / "model_store/metrics.yaml").read_text())["model_metrics"]


class Recorder:
    """Stands for TorchServe's metrics: name, value, unit, kind, dimensions by position, its own two at the end."""

    def __init__(self):
        self.seen = {}

    def add_metric(self, name, value, unit, metric_type, dimensions=()):
        self.seen[name] = (value, unit, metric_type.value, [d.name for d in dimensions] + ["ModelName", "Level"])

    def add_counter(self, name, value, dimensions=()):
        self.seen[name] = (value, "count", "counter", [d.name for d in dimensions] + ["ModelName", "Level"])


def test_everything_emitted_is_listed_alike():
    recorder = Recorder()
    report = BatchReport(queue_depth=3, service_s=0.012, work_s=0.5, levels=Counter({50: 2}),
                         errors=Counter({"bad_json": 1, "late": 1}), misses=Counter({"server": 1}),
                         ignored_starts=1, probe_up=True)  # fmt: skip
    Emitter().emit(recorder, report)
    assert len(recorder.seen) == 13
    for name, (_, unit, kind, dimensions) in recorder.seen.items():
        listed = next(metric for metric in LISTED[kind] if metric["name"] == name)
        assert (listed["unit"], listed["dimensions"]) == (unit, dimensions)


def test_counters_that_did_not_move_are_left_out():
    recorder = Recorder()
    Emitter().emit(recorder, BatchReport(queue_depth=0, service_s=0.01))
    gauges = {"elastic_queue_depth", "elastic_workers", "elastic_turnaround_seconds", "elastic_table_ratio",
              "elastic_int8_fallbacks"}  # fmt: skip
    assert set(recorder.seen) == gauges | {"elastic_service_seconds"}


def test_gauges_are_written_once_a_second_and_counters_with_every_batch():
    now_s = [0.0]
    emitter = Emitter(lambda: now_s[0])
    written = []
    for elapsed_s in (0.0, 0.5 * GAUGES_EVERY_S, GAUGES_EVERY_S):
        now_s[0] = elapsed_s
        recorder = Recorder()
        emitter.emit(recorder, BatchReport(queue_depth=3, service_s=0.01, work_s=0.5))
        assert "elastic_work_seconds_total" in recorder.seen
        written.append("elastic_queue_depth" in recorder.seen)
    assert written == [True, False, True]


def test_the_dashboard_asks_for_metrics_that_are_listed():
    dashboard = json.loads((Path(__file__).parents[2] / "model_store/grafana.json").read_text())
    names = {metric["name"] for kind in LISTED.values() for metric in kind}
    asked = set()
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            asked |= set(re.findall(r"elastic_\w+?(?=_bucket|\{)", target["expr"]))
    assert asked == {name for name in names if name.startswith("elastic_")}


def test_alerts_are_rules_over_metrics_that_are_listed():
    rules = yaml.safe_load((Path(__file__).parents[2] / "model_store/alerts.yaml").read_text())["groups"][0]["rules"]
    names = {metric["name"] for kind in LISTED.values() for metric in kind}
    for rule in rules:
        asked = set(re.findall(r"elastic_\w+", rule["expr"]))
        assert asked
        assert asked <= names, rule["alert"]
        assert {"alert", "expr", "for", "labels", "annotations"} == set(rule)
