"""The queue in the server's own process: ages, depths, batches and refusals are exact."""

import json
import threading
import time
from concurrent.futures import wait
from http import HTTPStatus
from unittest.mock import Mock

import pytest

from elasticlm.serving.request_queue import RequestQueue, count_rows
from elasticlm.serving.telemetry import BatchReport
from elasticlm.serving.wire import RawRequest, Response


class Held:
    """A core that answers when it is told to, and remembers the batches that it was given."""

    def __init__(self, batch_size=1):
        self.batch_size = batch_size
        self.seen, self.go, self.took = [], threading.Semaphore(0), threading.Semaphore(0)

    def handle(self, requests, backlog, now_s):
        self.seen.append(([request.body for request in requests], backlog))
        self.took.release()
        assert self.go.acquire(timeout=10)
        if b"defect" in self.seen[-1][0]:
            raise RuntimeError("a defect")
        responses = [Response(HTTPStatus.OK, {}, request.body.upper()) for request in requests]
        return responses, BatchReport(queue_depth=backlog.queue_depth, service_s=0.0)


def submit(queue, *bodies, rows=1):
    return [queue.submit(RawRequest(body), rows) for body in bodies]


@pytest.fixture
def held():
    """A queue of at most 4 waiting requests in front of a core that waits, and holds one request already."""
    core = Held(batch_size=2)
    queue = RequestQueue(core, bound=4)
    first = queue.submit(RawRequest(b"first"))
    assert core.took.acquire(timeout=10)
    yield core, queue, first
    core.go.release(100)
    queue.close()


def test_requests_are_answered_in_order_in_batches(held):
    core, queue, first = held
    futures = submit(queue, b"a", b"b", b"c")
    core.go.release(3)
    assert [future.result(10).body for future in (first, *futures)] == [b"FIRST", b"A", b"B", b"C"]
    assert [bodies for bodies, _ in core.seen] == [[b"first"], [b"a", b"b"], [b"c"]]


def test_depth_ages_and_rows_are_exact(held):
    core, queue, _ = held
    submit(queue, b"a", b"b", rows=1)
    time.sleep(0.1)
    submit(queue, b"c", rows=5)
    submit(queue, b"d", rows=2)
    core.go.release()
    assert core.took.acquire(timeout=10)
    _, backlog = core.seen[1]
    assert (backlog.queue_depth, backlog.waiting_rows, backlog.was_idle) == (2, 3.5, False)
    assert min(backlog.ages_ms) >= 100 > max(backlog.waiting_ages_ms)
    assert backlog.ages_ms[0] >= backlog.ages_ms[1]
    assert core.seen[0][1].was_idle


def test_a_full_queue_refuses_at_once_and_says_so_in_the_next_batch(held):
    core, queue, _ = held
    *admitted, refused = submit(queue, b"a", b"b", b"c", b"d", b"e", rows=3)
    response = refused.result(0)
    assert response.status == 503
    assert json.loads(response.body)["error"]["code"] == "queue_full"
    core.go.release(3)
    assert {future.result(10).status for future in admitted} == {200}
    assert [backlog.refused_rows for _, backlog in core.seen] == [(), (3,), ()]
    assert [backlog.queue_full for _, backlog in core.seen] == [False, True, False]


def test_a_cancelled_request_is_not_answered(held):
    core, queue, _ = held
    gone, kept = submit(queue, b"gone", b"kept")
    assert gone.cancel()
    core.go.release(2)
    assert kept.result(10).body == b"KEPT"
    assert [bodies for bodies, _ in core.seen] == [[b"first"], [b"kept"]]


def test_a_defect_of_the_core_fails_its_batch_and_nothing_else(held):
    core, queue, first = held
    (broken,) = submit(queue, b"defect")
    core.go.release(2)
    assert first.result(10).status == 200
    assert broken.result(10).status == 500
    (after,) = submit(queue, b"after")
    core.go.release()
    assert after.result(10).body == b"AFTER"
    assert queue.is_alive()


def test_metrics_that_cannot_be_published_cost_no_answer_and_are_logged_once(caplog):
    core = Held()
    core.go.release(100)
    queue = RequestQueue(core, bound=4, publish=Mock(side_effect=OSError("no metrics")))
    for _ in range(3):
        assert submit(queue, b"a")[0].result(10).body == b"A"
    queue.close()
    assert [record.getMessage() for record in caplog.records] == ["the metrics of a batch could not be published"]


def test_closing_answers_what_waits_and_refuses_the_rest(held):
    core, queue, first = held
    waiting = submit(queue, b"a", b"b")
    core.go.release(100)
    queue.close()
    assert all(future.done() for future in (first, *waiting))
    assert submit(queue, b"late")[0].result(0).status == 503
    assert not queue.is_alive()


def test_how_long_a_batch_has_been_running(held):
    core, queue, first = held
    time.sleep(0.05)
    assert queue.busy_s() >= 0.05
    core.go.release()
    wait([first], 10)
    deadline = time.monotonic() + 5
    while queue.busy_s():
        assert time.monotonic() < deadline


@pytest.mark.parametrize("body", [b'{"texts": 3}', b'{"texts": []}', b'"texts"', b'{"texts": [', b"", b"[" * 100_000])
def test_rows_of_what_is_no_list_count_as_one(body):
    assert count_rows(body) == 1
