"""Queue signals: batch fill, probe and age, as tables and against a management port of the tests' own."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from elasticlm.handlers.probe import ManagementProbe
from elasticlm.serving.backlog import Backlog
from elasticlm.serving.signals import (
    Arrivals,
    QueueSignal,
    QueueStatus,
    header_age_ms,
    known_ages_ms,
)

NOW_S = 1_700_000_000.5


@pytest.mark.parametrize(
    ("header", "age_ms"),
    [
        ("1700000000.25", 250),
        ("t=1700000000.25", 250),
        ("1700000000250", 250),
        ("t=1700000000250", 250),
        ("1700000000250000", 250),
        ("t=1700000000250000", 250),
        ("1700000000.5", 0),
        ("1700000000.6", None),  # the future
        ("1699999940.5", 60_000),
        ("1699999940.4", None),  # older than a minute
        ("0", None),
        ("-1", None),
        ("yesterday", None),
        ("nan", None),
        ("t=", None),
        ("", None),
        ("1" * 30, None),
    ],
)
def test_request_start_is_read_in_seconds_milliseconds_and_microseconds(header, age_ms):
    found = header_age_ms(header, NOW_S)
    assert found == (None if age_ms is None else pytest.approx(age_ms, abs=0.01))


def test_starts_that_tell_no_age_are_counted_and_the_sample_stands():
    headers = [None, "1700000000.25", "tomorrow", "1700000009"]
    assert known_ages_ms(headers, [1.0, 2.0, 3.0, 4.0], NOW_S) == ([1.0, 250.0, 3.0, 4.0], 2)
    assert known_ages_ms([], [], NOW_S) == ([], 0)


def test_a_request_is_as_old_as_the_last_point_that_it_was_not_there_yet():
    arrivals = Arrivals()
    arrivals.saw(10.0, 1)
    arrivals.saw(10.1, 4)
    arrivals.saw(10.2, 4)
    arrivals.saw(10.3, 6)
    assert [arrivals.age_ms(number, 10.4) for number in (2, 4, 5, 6)] == pytest.approx([400, 400, 200, 200])
    assert arrivals.age_ms(7, 10.4) == pytest.approx(100)


def test_without_a_fresh_point_nothing_is_known_of_ages():
    arrivals = Arrivals()
    assert arrivals.age_ms(1, 5.0) == 0
    arrivals.saw(10.0, 1)
    assert arrivals.age_ms(1, 10.1) == 0  # it was there before anything was seen
    assert arrivals.age_ms(2, 11.5) == 0  # the point is older than it may be


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def signal(statuses, *, batch_size, workers=1, batch_delay_s=0.0):
    clock, left = Clock(), list(statuses)
    probe = (lambda: left.pop(0)) if statuses else None
    made = QueueSignal(probe, batch_size=batch_size, workers=workers, batch_delay_s=batch_delay_s, clock=clock)
    return made, clock, left


def test_a_batch_with_room_means_an_empty_queue_and_no_probe():
    queue, _, left = signal([QueueStatus(9, 1)], batch_size=8)
    assert queue.batch_came(7).queue_depth == 0
    assert len(left) == 1
    assert queue.batch_came(8).queue_depth == 9
    assert left == []


def test_a_silent_probe_leaves_the_last_answer_for_a_second_then_a_full_round():
    queue, clock, _ = signal([QueueStatus(40, 2), None, None], batch_size=8)
    assert queue.batch_came(8) == Backlog(queue_depth=40, workers=2, ages_ms=(0.0,) * 8)
    clock.now = 0.9
    assert queue.batch_came(8).queue_depth == 40
    clock.now = 1.1
    assert queue.batch_came(8).queue_depth == 16


def test_an_empty_queue_seen_since_outdates_the_last_answer():
    queue, clock, _ = signal([QueueStatus(40, 1), None], batch_size=8)
    queue.batch_came(8)
    clock.now = 0.1
    assert queue.batch_came(3).queue_depth == 0
    clock.now = 0.2
    assert queue.batch_came(8).queue_depth == 8


def test_without_a_probe_a_full_batch_means_a_full_round():
    queue, _, _ = signal([], batch_size=4, workers=3)
    assert [queue.batch_came(n).queue_depth for n in (4, 3)] == [12, 0]


def test_ages_grow_with_the_queue_and_fall_when_it_drains():
    queue, clock, _ = signal([QueueStatus(n, 1) for n in (0, 3, 2, 1, 0, 0)], batch_size=1)
    ages = []
    for now in (0.0, 0.1, 0.2, 0.3, 0.4):
        clock.now = now
        ages.append(queue.batch_came(1).ages_ms[0])
        clock.now += 0.099
        queue.batch_done(0.0)
    # Request 2 came between the first two probes; 3 to 5 did too, and waited; nothing is known of request 1.
    assert ages == pytest.approx([0, 100, 200, 300, 400])
    clock.now = 30.0  # the worker waited long: the queue was empty, so this one has just come
    assert queue.batch_came(1).ages_ms == (0.0,)


def test_a_pause_between_batches_is_no_idleness_while_others_are_known_to_wait():
    queue, clock, _ = signal([QueueStatus(n, 1) for n in (0, 1, 0)], batch_size=1)
    for now, age_ms in ((0.0, 0), (0.1, 0), (0.5, 400)):  # the third came by 0.1, whatever kept it so long
        clock.now = now
        assert queue.batch_came(1).ages_ms == pytest.approx((age_ms,))
        queue.batch_done(0.0)


def test_after_a_wait_a_request_is_no_older_than_the_batch_delay():
    queue, clock, _ = signal([QueueStatus(0, 1)] * 2, batch_size=1, batch_delay_s=0.05)
    queue.batch_came(1)
    queue.batch_done(0.0)
    clock.now = 0.5
    assert queue.batch_came(1).ages_ms[0] == pytest.approx(50)


def test_with_several_workers_samples_tell_no_age():
    queue, clock, _ = signal([QueueStatus(0, 2)] * 3, batch_size=1)
    for now in (0.0, 0.1, 0.2):
        clock.now = now
        assert queue.batch_came(1).ages_ms == (0.0,)


def test_the_turnaround_is_what_a_cycle_takes_beyond_the_model_while_others_wait():
    queue, clock, _ = signal([QueueStatus(n, 1) for n in (3, 2, 1, 0, 0)], batch_size=1)
    found = []
    for now, forward_ms in ((0.0, 40.0), (0.045, 40.0), (0.091, 20.0), (0.115, 20.0), (5.0, 20.0)):
        clock.now = now
        found.append(queue.batch_came(1).turnaround_ms)
        queue.batch_done(forward_ms)
    # Cycles of 45, 46 and 24 ms; the last batch came after idleness, which is no turnaround.
    assert found == pytest.approx([0, 5, 5.5, 5, 5])


def test_a_batch_that_waits_to_fill_up_tells_no_turnaround():
    queue, clock, _ = signal([QueueStatus(7, 1), QueueStatus(15, 2)], batch_size=8)
    for now in (0.0, 0.1, 0.2):  # 7 are no batch of 8, and 15 no batch of 8 for either worker
        clock.now = now
        assert queue.batch_came(8 if now < 0.2 else 1).turnaround_ms == 0
        queue.batch_done(1.0)


# -- the probe, over a real socket -------------------------------------------------------------------------------------

WORKERS = [{"pid": 77, "status": "READY"}, {"pid": 78, "status": "READY"}, {"pid": 79, "status": "UNLOADING"}]


@pytest.fixture
def management():
    """A management port with one model; `state` says how it behaves, `state["asked"]` what it was asked."""
    state = {"delay_s": 0.0, "key": None, "pending": 5, "asked": []}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            state["asked"].append(self.path)
            time.sleep(state["delay_s"])
            refused = state["key"] and self.headers.get("Authorization") != f"Bearer {state['key']}"
            model = {"workers": WORKERS, "jobQueueStatus": {"pendingRequests": state["pending"]}}
            body = b"{}" if refused else json.dumps([model]).encode()
            body = state.get("body", body)
            self.send_response(400 if refused else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    state["url"] = f"http://127.0.0.1:{server.server_port}"
    yield state
    server.shutdown()
    server.server_close()


def make_probe(management, **options):
    clock = Clock()
    options = {"worker_pid": 77, "timeout_s": 1.0, "clock": clock} | options
    return ManagementProbe(management["url"], "mini", **options), clock


def test_the_probe_reads_the_queue_and_the_workers_that_are_ready(management):
    probe, _ = make_probe(management)
    assert [probe(), probe()] == [QueueStatus(5, 2)] * 2
    assert management["asked"] == ["/models/mini"] * 2


def test_a_slow_management_port_costs_the_timeout_once_in_a_while_and_is_taken_up_again(management):
    probe, clock = make_probe(management, timeout_s=0.005)
    management["delay_s"] = 0.2
    started = time.perf_counter()
    assert [probe() for _ in range(100)] == [None] * 100
    assert time.perf_counter() - started < 0.1
    management.update(delay_s=0.0, pending=6)
    time.sleep(0.3)  # the late answer is out by now, and must not be taken for the next one
    clock.now = 1.0
    probe._connection.timeout = 1.0
    assert probe() == QueueStatus(6, 2)


def test_a_management_port_that_is_off_warns_once_and_costs_nothing(management, caplog):
    management["url"] = "http://127.0.0.1:9"
    probe, clock = make_probe(management)
    for now in range(5):
        clock.now = float(now)
        assert probe() is None
    assert len([r for r in caplog.records if "cannot be reached" in r.message]) == 1


def test_a_refused_token_is_read_again(management, tmp_path, caplog):
    key_file = tmp_path / "key_file.json"
    key_file.write_text(json.dumps({"management": {"key": "old"}}))
    management["key"] = "new"
    probe, clock = make_probe(management, key_file=str(key_file))
    assert probe() is None
    clock.now = 2.0
    assert probe() is None
    assert len([r for r in caplog.records if "refuses" in r.message]) == 1
    key_file.write_text(json.dumps({"management": {"key": "new"}}))
    clock.now = 4.0
    probe()  # refused with the old token; the file is read again
    clock.now = 6.0
    assert probe() == QueueStatus(5, 2)


def test_another_servers_management_port_is_not_believed(management, caplog):
    probe, _ = make_probe(management, worker_pid=1234)
    assert probe() is None
    assert "does not list this worker" in caplog.text


FOREIGN = [b"<html>hello</html>", b"{}", b"[]", b"null", b"[1]", b'[{"workers": []}]', b"", b"\xff\xfe", b"[" * 5000,
           b'[{"workers": [{"pid": 77, "status": "READY"}], "jobQueueStatus": {"pendingRequests": "many"}}]',
           b'[{"workers": [{"pid": 77, "status": "READY"}], "jobQueueStatus": {"pendingRequests": -1}}]',
           b'[{"workers": [{"pid": [], "status": "READY"}], "jobQueueStatus": {"pendingRequests": 1}}]']  # fmt: skip


@pytest.mark.parametrize("body", FOREIGN)
def test_a_management_port_that_something_else_answers_is_no_reason_to_fail(management, caplog, body):
    management["body"] = body
    probe, clock = make_probe(management)
    for now in range(3):
        clock.now = 2.0 * now
        assert probe() is None
    assert len([r for r in caplog.records if "not TorchServe's" in r.message]) == 1
