"""The class that TorchServe calls: what it takes from TorchServe's objects, and what it writes into them."""

import gc
import importlib.util
import json
import time
from pathlib import Path

import pytest
import yaml
from archives import archive, servable
from ts.context import Context, RequestProcessor
from ts.utils.util import list_classes_from_module

import elasticlm.handlers.elastic_handler
from elasticlm.handlers.elastic_handler import ElasticHandler
from elasticlm.handlers.emission import Emitter
from elasticlm.serving.bundle import read_manifest, unpack
from elasticlm.serving.core import ServingCore
from elasticlm.serving.engine import Answer
from elasticlm.serving.requests import Service
from elasticlm.serving.settings import Settings
from elasticlm.serving.signals import QueueSignal, QueueStatus


class Metrics:
    """Sums up what is emitted."""

    def __init__(self):
        self.seen = {}

    def __getattr__(self, _):
        return lambda name, value, *_, **__: self.seen.update({name: self.seen.get(name, 0) + value})


class Slow:
    """Takes 30 ms for each stage, and remembers the loads."""

    service, row_ms = Service("embed"), 10.0
    table_stages, int8_fallbacks = frozenset({"tokenize", "forward", "convert"}), 0

    def __init__(self, seconds=0.0):
        self.loads, self.seconds = [], seconds

    def adopt(self, settings):
        pass

    def answer(self, requests, load, stages):
        self.loads.append(load)
        for stage in ("tokenize", "forward", "convert"):
            time.sleep(self.seconds)
            stages.done(stage)
        return [Answer({"embedding": request.text, "level": 50}, 50, 30.0) for request in requests]


def handler(engine, probe=None, *, batch_size=8, **settings):
    made = ElasticHandler()
    made.emitter = Emitter()
    made.backlog = QueueSignal(probe, batch_size=batch_size)
    made.core = ServingCore(engine, Settings(**{"latency_budget_ms": 250} | settings), batch_size=batch_size)
    return made


def handle(made, bodies, headers=()):
    context = Context("mini", ".", {}, 8, None, "0.12.0", metrics=Metrics())
    by_request = [dict(given) for given in headers] or [{}] * len(bodies)
    context.request_processor = [
        RequestProcessor({"body": {"content-type": "application/json"}} | given) for given in by_request
    ]
    items = [{} if body is None else {"body": bytearray(body) if isinstance(body, bytes) else body} for body in bodies]
    return [json.loads(answer) for answer in made.handle(items, context)], context


def test_torchserve_finds_exactly_one_class_in_the_archives_root_file():
    spec = importlib.util.spec_from_file_location("plain_name", Path(elasticlm.handlers.elastic_handler.__file__))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert [found.__name__ for found in list_classes_from_module(module)] == ["ElasticHandler"]
    assert not hasattr(module, "handle")  # TorchServe would take a function before the class


def test_statuses_headers_and_bodies_reach_torchserve_by_request():
    answers, context = handle(handler(Slow()), [b'{"text": "a"}', b"{", {"text": "decoded"}, None])
    assert [answer.get("embedding") for answer in answers] == ["a", None, "decoded", None]
    assert [context.get_response_status(i)[0] for i in range(4)] == [200, 400, 200, 400]
    headers = [context.get_response_headers(i) for i in range(4)]
    assert [by_name.get("X-Elastic-Level") for by_name in headers] == ["50", None, "50", None]
    assert {by_name["content-type"] for by_name in headers} == {"application/json"}
    assert all(float(by_name["X-Elastic-Service-Ms"]) > 0 for by_name in headers)


def test_headers_of_requests_reach_the_core_and_metrics_reach_torchserve():
    engine = Slow()
    old = {"X-Request-Start": f"{time.time() - 1:.6f}", "X-Latency-Budget-Ms": "100"}
    _, context = handle(handler(engine, late="answer"), [b'{"text": "a"}', b"{"], [old, {}])
    assert engine.loads[0].ages_ms[0] == pytest.approx(1000, abs=100)
    assert engine.loads[0].budgets_ms == (100.0,)
    seen = context.metrics.seen
    assert (seen["elastic_answers_total"], seen["elastic_errors_total"], seen["elastic_deadline_misses_total"]) == (
        1,
        1,
        1,
    )
    assert seen["elastic_work_seconds_total"] == pytest.approx(0.030)


def test_the_turnaround_leaves_out_what_the_latency_table_contains():
    engine = Slow(0.03)
    made = handler(engine, lambda taken: QueueStatus(9, 1, taken=taken), batch_size=1)
    for _ in range(3):
        handle(made, [b'{"text": "a"}'])
    assert 0 < engine.loads[-1].turnaround_ms < 20


def test_what_is_loaded_at_start_is_left_out_of_garbage_collections(tiny_artifact, tmp_path):
    artifact = servable(tiny_artifact, tmp_path / "artifact", {100: 3.0, 50: 2.0, 10: 1.0})
    bundle = unpack(archive("mini", artifact, tmp_path, management_url=""), tmp_path / "unpacked")
    config = yaml.safe_load((bundle.folder / "model-config.yaml").read_text())
    manifest = read_manifest(bundle.folder)
    context = Context("mini", str(bundle.folder), {"model": manifest}, 1, None, None, model_yaml_config=config)
    made = ElasticHandler()
    try:
        made.initialize(context)
        collected = gc.get_objects()
        assert not any(each is made.core for each in collected)
        assert len(collected) < gc.get_freeze_count() / 10
    finally:
        gc.unfreeze()
