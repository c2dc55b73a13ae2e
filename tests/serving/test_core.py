"""The serving core with an engine whose answers are its requests' own words."""

import json
import time

import numpy as np
import pytest

from elasticlm.serving.backlog import Backlog
from elasticlm.serving.core import ServingCore
from elasticlm.serving.engine import Answer
from elasticlm.serving.requests import RequestError, Service
from elasticlm.serving.settings import Settings
from elasticlm.serving.wire import RawRequest

NOW_S = 1_700_000_000.0
IDLE = Backlog()
ONE_SECOND_OLD = {"X-Request-Start": f"t={NOW_S - 1}"}


class Echo:
    """Answers with the text of the request; some texts make it fail. Remembers the loads that it was given."""

    service, row_ms, expected_ms = Service("embed"), 10.0, 0.0
    table_stages, int8_fallbacks = frozenset({"tokenize", "forward"}), 0

    def __init__(self):
        self.loads, self.batches = [], []

    def adopt(self, settings):
        pass

    def answer(self, requests, load, stages):
        self.loads.append(load)
        self.batches.append([request.text for request in requests])
        if any(request.text == "bomb" for request in requests):
            raise RuntimeError("the weights are secret")
        for stage in ("tokenize", "forward", "search"):
            time.sleep(0.002)
            stages.done(stage)
        return [self.outcome(request.text) for request in requests]

    def outcome(self, text):
        if text == "late":
            return RequestError("late", "too late", 504)
        return Answer({"embedding": self.vector(text), "level": 50}, 50, 30.0, self.expected_ms)

    @staticmethod
    def vector(text):
        return object() if text == "unspeakable" else text


def core(**settings):
    return ServingCore(Echo(), Settings(**{"latency_budget_ms": 250} | settings), batch_size=8)


def raw(text, **headers):
    return RawRequest(json.dumps({"text": text}).encode(), headers)


def handle(made, *requests, backlog=IDLE):
    responses, report = made.handle(requests, backlog, NOW_S)
    return [json.loads(response.body) for response in responses], responses, report


def test_each_request_gets_its_own_answer_status_and_headers():
    backlog = Backlog(queue_depth=3, ages_ms=(1.0, 2.0, 3.0, 4.0), took_ms=0.5)
    bodies, responses, report = handle(core(), raw("a"), RawRequest(b'{"txt": "b"}'), RawRequest(b"{"), raw("d"),
                                       backlog=backlog)  # fmt: skip
    assert [body.get("embedding") for body in bodies] == ["a", None, None, "d"]
    assert [body.get("error", {}).get("code") for body in bodies] == [None, "unknown_field", "bad_json", None]
    assert [response.status for response in responses] == [200, 400, 400, 200]
    headers = [response.headers for response in responses]
    assert [by_name.get("X-Elastic-Level") for by_name in headers] == ["50", None, None, "50"]
    assert {by_name["X-Elastic-Queue-Depth"] for by_name in headers} == {"3"}
    assert {by_name["Content-Type"] for by_name in headers} == {"application/json"}
    stages = dict(stage.split(";dur=") for stage in headers[3]["Server-Timing"].split(", "))
    assert float(stages.pop("wait")) == 4
    assert list(stages) == ["signal", "parse", "tokenize", "forward", "search", "encode"]
    assert sum(map(float, stages.values())) == pytest.approx(float(headers[0]["X-Elastic-Service-Ms"]), abs=0.01)
    assert report.service_s * 1e3 == pytest.approx(float(headers[0]["X-Elastic-Service-Ms"]), abs=0.01)


def test_only_the_stages_of_the_latency_table_count_as_its_time():
    _, responses, report = handle(core(), raw("a"))
    stages = dict(stage.split(";dur=") for stage in responses[0].headers["Server-Timing"].split(", "))
    assert report.table_ms == pytest.approx(float(stages["tokenize"]) + float(stages["forward"]), abs=0.01)


def test_only_accepted_requests_are_answered_and_count_as_load():
    made = core(overhead_ms=3.0)
    backlog = Backlog(queue_depth=9, workers=2, ages_ms=(5.0, 6.0, 7.0), turnaround_ms=4.0)
    handle(made, raw("a"), RawRequest(b"{"), raw("c", **{"X-Latency-Budget-Ms": "100"}), backlog=backlog)
    (load,) = made.engine.loads
    assert (load.ages_ms, load.budgets_ms) == ((5.0, 7.0), (250.0, 100.0))
    assert (load.queue_depth, load.workers, load.batch_size) == (9, 2, 8)
    assert (load.overhead_ms, load.turnaround_ms) == (3.0, 4.0)
    handle(made, RawRequest(b"{"))
    assert len(made.engine.loads) == 1


@pytest.mark.parametrize("name", ["X-Request-Start", "x-request-start", "X-REQUEST-START"])
def test_headers_are_read_in_any_case(name):
    made = core()
    handle(made, raw("a", **{name: f"t={NOW_S - 1}", "X-latency-budget-MS": "100"}))
    assert made.engine.loads[0].ages_ms == (1000,)
    assert made.engine.loads[0].budgets_ms == (100.0,)


def test_ages_without_headers_are_passed_on_unless_headers_may_lower_the_level_of_a_batch():
    batch = [raw("a", **ONE_SECOND_OLD), RawRequest(b"{"), raw("c")]
    backlog = Backlog(ages_ms=(900.0, 6.0, None))
    for settings, counted in (({}, (900.0, None)), ({"trust_for_batch": True}, None)):
        made = core(**settings)
        handle(made, *batch, backlog=backlog)
        (load,) = made.engine.loads
        assert (load.ages_ms, load.counted_ages_ms) == ((1000.0, None), counted)


def test_headers_of_clients_that_are_not_trusted_change_nothing():
    made = core(trust_request_start=False, trust_latency_budget=False)
    *_, report = handle(made, raw("a", **ONE_SECOND_OLD, **{"X-Latency-Budget-Ms": "5.5"}))
    assert (made.engine.loads[0].ages_ms, made.engine.loads[0].budgets_ms) == ((None,), (250.0,))
    assert report.ignored_starts == 0


def test_starts_that_are_not_valid_are_ignored_and_counted():
    made = core()
    *_, report = handle(made, raw("a", **{"X-Request-Start": "soon"}), raw("b", **{"X-Request-Start": "9e9"}))
    assert made.engine.loads[0].ages_ms == (None, None)
    assert report.ignored_starts == 2


def test_a_request_that_the_engine_refuses_has_its_own_status():
    bodies, responses, report = handle(core(), raw("late"), raw("b"))
    assert bodies[0]["error"]["code"] == "late"
    assert [response.status for response in responses] == [504, 200]
    assert (report.misses, report.errors, report.levels) == ({"server": 1}, {"late": 1}, {50: 1})


def test_a_batch_is_counted_by_level_error_and_deadline():
    *_, report = handle(core(), raw("a", **ONE_SECOND_OLD), RawRequest(b"{"), raw("c"))
    assert (report.levels, report.errors, report.misses) == ({50: 2}, {"bad_json": 1}, {"server": 1})
    assert report.work_s == pytest.approx(0.060)


def test_budgets_that_only_clients_asked_for_are_missed_by_clients():
    backlog = Backlog(ages_ms=(100.0, 100.0, 300.0))
    hurried = {"X-Latency-Budget-Ms": "50"}
    *_, report = handle(core(), raw("a"), raw("b", **hurried), raw("c", **hurried), backlog=backlog)
    assert report.misses == {"client": 1, "server": 1}


def test_work_includes_refused_requests_as_if_they_were_typical_and_ends_with_the_requests():
    made = core()
    work_s = [handle(made, raw("a"), raw("late"))[2].work_s for _ in range(200)]
    assert work_s[0] == pytest.approx(0.030 + 0.011)  # 10 ms until requests have been answered, then closer to 30 ms
    assert work_s[-1] == pytest.approx(0.060, rel=0.01)
    assert handle(made)[2].work_s == 0


def test_the_table_is_corrected_by_batches_that_were_answered_whole():
    made = core()
    made.engine.table_stages = frozenset({"tokenize"})  # 2 ms or a little more
    made.engine.expected_ms = 1.0
    ratios = [handle(made, raw("a"))[2].table_ratio for _ in range(60)]
    assert ratios[0] < ratios[10] < ratios[-1]
    assert 1.9 < ratios[-1] < 4
    assert made.engine.loads[-1].table_ratio == ratios[-2]
    assert handle(made, raw("late"))[2].table_ratio == ratios[-1]


def test_an_exception_while_answering_fails_only_the_request_that_causes_it(caplog):
    made = core()
    texts = ["a", "b", "bomb", "d", "e", "f", "g", "h"]
    bodies, responses, report = handle(made, *map(raw, texts), backlog=Backlog(queue_depth=5))
    assert [response.status for response in responses] == [200, 200, 500, 200, 200, 200, 200, 200]
    assert [body.get("embedding") for body in bodies] == ["a", "b", None, "d", "e", "f", "g", "h"]
    assert bodies[2]["error"]["code"] == "internal"
    assert b"secret" not in responses[2].body
    assert "the weights are secret" in caplog.text
    assert made.engine.batches == [texts, *([text] for text in texts)]
    assert [load.queue_depth for load in made.engine.loads] == [5, 12, 11, 10, 9, 8, 7, 6, 5]
    assert (report.errors, report.levels) == ({"internal": 1}, {50: 7})
    assert report.work_s == pytest.approx(7 * 0.030 + 0.010, rel=0.2)


def test_an_answer_that_cannot_be_encoded_fails_alone():
    bodies, responses, report = handle(core(), raw("a"), raw("unspeakable"))
    assert [response.status for response in responses] == [200, 500]
    assert bodies[1]["error"]["code"] == "internal"
    assert (report.errors, report.levels) == ({"internal": 1}, {50: 1})


def test_a_request_that_cannot_be_read_for_any_reason_fails_alone(monkeypatch):
    made = core()
    monkeypatch.setattr(Service, "task", property(lambda self: 1 / 0), raising=False)
    _, responses, _ = handle(made, raw("a"), RawRequest(b"{"))
    assert [response.status for response in responses] == [500, 400]


def test_binary_answers_are_float32_and_say_what_json_says_in_headers():
    made = core()
    made.engine.answer = lambda requests, load, stages: [
        Answer({"embedding": np.array([1.0, 2.0]), "level": 10, "truncated": True}, 10)
    ]
    (response,), _ = made.handle([raw("a", Accept="application/octet-stream")], Backlog(), NOW_S)
    assert np.frombuffer(response.body, "<f4").tolist() == [1.0, 2.0]
    headers = response.headers
    assert headers["Content-Type"] == "application/octet-stream"
    assert (headers["X-Elastic-Level"], headers["X-Elastic-Truncated"]) == ("10", "true")


def test_an_empty_batch_is_no_reason_to_fail():
    bodies, _, report = handle(core())
    assert bodies == []
    assert report.levels == {}


def test_requests_that_the_queue_refused_count_as_errors_misses_and_work():
    """Overload has to show where the queue's bound keeps it away from the core."""
    *_, report = handle(core(), raw("ice"), backlog=Backlog(refused_rows=(1, 4)))
    assert report.errors == {"queue_full": 2}
    assert report.misses == {"server": 2}
    assert report.work_s == pytest.approx(0.030 + 5 * 0.011, rel=0.01)  # 30 ms answered, then 11 ms a row


def test_rows_of_waiting_requests_reach_the_schedule():
    made = core()
    handle(made, raw("ice"), backlog=Backlog(queue_depth=2, waiting_rows=7.5))
    assert made.engine.loads[0].waiting_rows == 7.5
