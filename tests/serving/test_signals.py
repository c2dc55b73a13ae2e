"""Queue signals: batch fill, probe and age, as tables and against a management port of the tests' own."""

import json
import threading
import time
from collections import Counter
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from elasticlm.handlers.probe import ManagementProbe
from elasticlm.serving.shared_counts import OwnCount, SharedCounts
from elasticlm.serving.signals import (
    Arrivals,
    QueueSignal,
    QueueStatus,
    StartHeaders,
    header_age_ms,
)
from elasticlm.serving.telemetry import BatchReport

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


def test_starts_that_are_not_valid_are_counted_and_the_estimate_is_used():
    headers = [None, "1700000000.25", "tomorrow", "1700000009"]
    assert StartHeaders().ages_ms(headers, [1.0, 2.0, None, 4.0], NOW_S) == ([1.0, 250.0, None, 4.0], 2)
    assert StartHeaders().ages_ms([], [], NOW_S) == ([], 0)


def test_ages_that_idle_workers_see_are_the_skew_of_the_clocks():
    starts = StartHeaders()

    def age_ms(header_age_s, now_s, **known):
        return starts.ages_ms([f"{now_s - header_age_s:.6f}"], [None], now_s, **known)[0][0]

    assert age_ms(0.7, NOW_S) == pytest.approx(700, abs=0.1)
    assert age_ms(0.6, NOW_S, was_idle=True) == pytest.approx(0, abs=0.1)
    assert age_ms(0.5, NOW_S + 1, was_idle=True) == pytest.approx(0, abs=0.1)
    assert age_ms(0.7, NOW_S + 2) == pytest.approx(200, abs=0.1)
    assert age_ms(0.3, NOW_S + 3) == 0  # never below 0
    assert age_ms(0.7, NOW_S + 70) == pytest.approx(700, abs=0.1)  # what was seen a minute ago is forgotten


def test_an_age_far_above_the_estimate_from_counts_is_ignored_and_counted():
    starts = StartHeaders()
    header = [f"{NOW_S - 0.5:.6f}"]
    assert starts.ages_ms(header, [100.0], NOW_S, budget_ms=250) == ([100.0], 1)
    assert starts.ages_ms(header, [300.0], NOW_S, budget_ms=250)[1] == 0
    assert starts.ages_ms(header, [None], NOW_S, budget_ms=250)[1] == 0


def test_a_request_came_a_quarter_of_the_way_between_two_points():
    arrivals = Arrivals()
    for now_s, arrived in ((10.0, 1), (10.1, 4), (10.2, 4), (10.4, 6)):
        arrivals.saw(now_s, arrived)
    assert arrivals.ages_ms(2, 6, 10.4) == pytest.approx((375, 375, 375, 150, 150))
    assert arrivals.ages_ms(5, 7, 10.4) == (pytest.approx(150), pytest.approx(150), None)  # 7 was not seen to arrive


def test_counts_never_fall_and_what_was_there_before_the_first_point_is_unknown():
    arrivals = Arrivals()
    assert arrivals.ages_ms(1, 2, 5.0) == (None, None)
    arrivals.saw(10.0, 3)
    arrivals.saw(10.1, 1)  # a probe that was overtaken
    arrivals.saw(10.2, 5)
    assert arrivals.ages_ms(3, 5, 10.2) == (None, pytest.approx(75), pytest.approx(75))
    arrivals.forget()
    assert arrivals.ages_ms(5, 5, 10.3) == (None,)


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def report(table_ms):
    return BatchReport(queue_depth=0, service_s=table_ms / 1e3, table_ms=table_ms, levels=Counter({50: 1}))


DONE = report(0.0)
REFUSED = BatchReport(queue_depth=0, service_s=0.0, errors=Counter({"late": 1}))


def signal(statuses, *, batch_size, workers=1, batch_delay_s=0.0, counts=None):
    clock, left = Clock(), list(statuses)

    def probe(taken):
        status = left.pop(0)
        return replace(status, taken=taken) if status and not status.taken else status

    made = QueueSignal(probe if statuses else None, batch_size=batch_size, workers=workers, batch_delay_s=batch_delay_s,
                       counts=counts, clock=clock)  # fmt: skip
    return made, clock, left


def test_a_batch_with_room_means_an_empty_queue_and_no_probe():
    queue, _, left = signal([QueueStatus(9, 1)], batch_size=8)
    assert queue.batch_came(7).queue_depth == 0
    assert len(left) == 1
    assert queue.batch_came(8).queue_depth == 9
    assert left == []


def test_a_silent_probe_leaves_the_last_answer_for_a_second():
    queue, clock, _ = signal([QueueStatus(40, 2), None, None], batch_size=8)
    backlog = queue.batch_came(8)
    assert (backlog.queue_depth, backlog.workers, backlog.probe_up) == (40, 2, True)
    queue.batch_done(DONE)
    clock.now = 0.9
    queue.batch_done(DONE)
    backlog = queue.batch_came(8)
    assert (backlog.queue_depth, backlog.probe_up) == (40, False)
    clock.now = 1.1
    queue.batch_done(DONE)
    assert queue.batch_came(8).queue_depth == 2 * 8 * 2  # two further full batches without a pause


def test_an_empty_queue_seen_since_outdates_the_last_answer():
    queue, clock, _ = signal([QueueStatus(40, 1), None], batch_size=8)
    queue.batch_came(8)
    clock.now = 0.1
    assert queue.batch_came(3).queue_depth == 0
    clock.now = 0.2
    queue.batch_done(DONE)
    assert queue.batch_came(8).queue_depth == 8


def test_without_a_probe_the_depth_grows_with_full_batches_in_a_row_and_idleness_ends_it():
    queue, clock, _ = signal([], batch_size=4, workers=3)
    depths = []
    for idle_s, count in ((0.0, 4), (0.0, 4), (0.0, 4), (0.0, 3), (0.0, 4), (1.0, 4), (0.0, 4)):
        queue.batch_done(DONE)
        clock.now += idle_s
        depths.append(queue.batch_came(count).queue_depth)
    assert depths == [12, 24, 36, 0, 12, 0, 12]


def test_ages_grow_with_the_queue_and_fall_when_it_drains():
    queue, clock, _ = signal([QueueStatus(n, 1) for n in (0, 3, 2, 1, 0, 0)], batch_size=1)
    ages = []
    for now in (0.0, 0.1, 0.2, 0.3, 0.4):
        clock.now = now
        backlog = queue.batch_came(1)
        ages.append(backlog.ages_ms[0])
        assert len(backlog.waiting_ages_ms) == backlog.queue_depth
        clock.now += 0.099
        queue.batch_done(DONE)
    # Requests 2 to 5 came between the first two probes, at 0.025 s; nothing is known of request 1.
    assert ages == [None, *map(pytest.approx, (75, 175, 275, 375))]
    clock.now = 30.0  # the worker waited long: the queue was empty, so this one has just come
    backlog = queue.batch_came(1)
    assert (backlog.was_idle, backlog.ages_ms) == (True, (pytest.approx(0),))


def test_waiting_requests_have_ages_too():
    queue, clock, _ = signal([QueueStatus(0, 1), QueueStatus(2, 1), QueueStatus(3, 1)], batch_size=1)
    for now in (0.0, 0.1, 0.2):
        clock.now = now
        backlog = queue.batch_came(1)
        clock.now += 0.099
        queue.batch_done(DONE)
    assert (*backlog.ages_ms, *backlog.waiting_ages_ms) == pytest.approx((175, 175, 75, 75))


def test_a_pause_between_batches_is_no_idleness_while_others_are_known_to_wait():
    queue, clock, _ = signal([QueueStatus(n, 1) for n in (0, 1, 0)], batch_size=1)
    ages = []
    for now in (0.0, 0.1, 0.5):  # the third came by 0.1, whatever kept it so long
        clock.now = now
        ages.append(queue.batch_came(1).ages_ms[0])
        queue.batch_done(DONE)
    assert ages[2] >= 400


def test_after_a_wait_a_request_is_no_older_than_the_batch_delay():
    queue, clock, _ = signal([QueueStatus(0, 1)] * 2, batch_size=1, batch_delay_s=0.05)
    queue.batch_came(1)
    queue.batch_done(DONE)
    clock.now = 0.5
    assert 0 <= queue.batch_came(1).ages_ms[0] <= 50


def test_several_workers_know_ages_only_if_they_share_their_counts(tmp_path):
    for counts, known in ((None, False), (SharedCounts(tmp_path / "counts"), True)):
        queue, clock, _ = signal([QueueStatus(2, 2)] * 3, batch_size=1, counts=counts)
        for now in (0.0, 0.1, 0.2):
            clock.now = now
            backlog = queue.batch_came(1)
            clock.now += 0.099
            queue.batch_done(DONE)
        ages_ms = (*backlog.ages_ms, *backlog.waiting_ages_ms)
        assert all(age is None for age in ages_ms) is not known


@pytest.mark.parametrize(
    ("status", "full"),
    [
        (QueueStatus(21, 1, capacity=22), True),
        (QueueStatus(20, 1, capacity=22), False),
        (QueueStatus(21, 1), False),
        (QueueStatus(0, 1, capacity=1), False),
    ],
)
def test_the_queue_was_full_if_it_had_no_room_with_the_batch_in_it(status, full):
    queue, _, _ = signal([status], batch_size=1)
    assert queue.batch_came(1).queue_full is full


def test_a_late_answer_counts_from_when_it_was_asked():
    queue, clock, _ = signal([QueueStatus(0, 1), None, QueueStatus(3, 1, taken=2)], batch_size=1)
    for now in (0.0, 0.04, 0.08):
        queue.batch_done(DONE)
        clock.now = now
        backlog = queue.batch_came(1)
        clock.now = now + 0.04
    assert (backlog.queue_depth, backlog.probe_up) == (3, True)
    # Numbers 2 to 5 had come by 0.08 s, since the first answer at 0 s; number 6 is assumed.
    assert (backlog.ages_ms, backlog.waiting_ages_ms) == (pytest.approx((60,)), pytest.approx((60, 60, None)))


def test_an_answer_from_before_the_worker_was_idle_is_not_used():
    queue, clock, _ = signal([QueueStatus(0, 1), QueueStatus(5, 1, taken=1)], batch_size=1)
    queue.batch_came(1)
    queue.batch_done(DONE)
    clock.now = 0.5
    assert queue.batch_came(1).queue_depth == 0


def test_a_worker_that_disappears_makes_the_points_useless():
    two, one = frozenset({1, 2}), frozenset({1})
    statuses = [QueueStatus(3, 2, two), QueueStatus(3, 2, two), QueueStatus(3, 1, one), QueueStatus(3, 1, one)]
    queue, clock, _ = signal(statuses, batch_size=1, counts=OwnCount())
    queue._counts.shared = True
    ages = []
    for now in (0.0, 0.1, 0.2, 0.3):
        clock.now = now
        ages.append(queue.batch_came(1).waiting_ages_ms[-1])
        queue.batch_done(DONE)
    assert [age is None for age in ages] == [True, False, True, False]


def test_requests_that_are_lost_on_the_way_do_not_make_later_ones_old():
    queue, clock, _ = signal([QueueStatus(n, 1) for n in (5, 0, 0, 0)], batch_size=1)
    found = []
    for now in (0.0, 1.0, 2.0, 3.0):  # five were waiting, and none of them ever reached the worker
        clock.now = now
        backlog = queue.batch_came(1)
        found.append((backlog.was_idle, backlog.ages_ms[0]))
        queue.batch_done(DONE)
    assert found[2:] == [(True, pytest.approx(0)), (True, pytest.approx(0))]


def test_the_turnaround_is_the_cycle_beyond_the_tables_time_while_others_wait():
    queue, clock, _ = signal([QueueStatus(n, 1) for n in (3, 2, 1, 0, 0)], batch_size=1)
    found = []
    for now, table_ms in ((0.0, 40.0), (0.045, 40.0), (0.091, 20.0), (0.115, 20.0), (5.0, 20.0)):
        clock.now = now
        found.append(queue.batch_came(1).turnaround_ms)
        clock.now = now + table_ms / 1e3
        queue.batch_done(report(table_ms))
    # Cycles of 45, 46 and 24 ms; the last batch came after idleness, which is no turnaround.
    assert found == pytest.approx([0, 5, 5.5, 5, 5])


def test_batches_that_were_refused_say_what_a_refusal_costs():
    queue, clock, _ = signal([QueueStatus(9, 1)] * 4, batch_size=1)
    found = []
    for now, done in ((0.0, report(40.0)), (0.045, REFUSED), (0.047, REFUSED), (0.049, report(40.0))):
        clock.now = now
        backlog = queue.batch_came(1)
        found.append((backlog.turnaround_ms, backlog.refusal_ms))
        queue.batch_done(done)
    assert found == [(0, 0), pytest.approx((5, 5)), pytest.approx((5, 2)), pytest.approx((5, 2))]


def test_a_batch_that_waits_to_fill_up_tells_no_turnaround():
    queue, clock, _ = signal([QueueStatus(7, 1), QueueStatus(15, 2)], batch_size=8)
    for now in (0.0, 0.1, 0.2):  # 7 are no batch of 8, and 15 no batch of 8 for either worker
        clock.now = now
        assert queue.batch_came(8 if now < 0.2 else 1).turnaround_ms == 0
        queue.batch_done(DONE)


# -- the probe, over a real socket -------------------------------------------------------------------------------------

WORKERS = [{"pid": 77, "status": "READY"}, {"pid": 78, "status": "READY"}, {"pid": 79, "status": "UNLOADING"}]
PIDS = frozenset({77, 78, 79})


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
            queue = {"pendingRequests": state["pending"], "remainingCapacity": 17}
            model = {"workers": WORKERS, "jobQueueStatus": queue}
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
    assert [probe(), probe()] == [QueueStatus(5, 2, PIDS, 22)] * 2
    assert management["asked"] == ["/models/mini"] * 2


def test_a_slow_management_port_costs_the_timeout_once_in_a_while_and_late_answers_are_used(management):
    probe, clock = make_probe(management, timeout_s=0.005)
    management["delay_s"] = 0.2
    started = time.perf_counter()
    assert [probe(7) for _ in range(100)] == [None] * 100
    assert time.perf_counter() - started < 0.1
    assert len(management["asked"]) == 1
    time.sleep(0.3)
    assert probe(9) == QueueStatus(5, 2, PIDS, 22, taken=7)  # nobody waits for the next answer for a while
    management.update(delay_s=0.0, pending=6)
    time.sleep(0.3)
    assert probe(11) == QueueStatus(6, 2, PIDS, 23, taken=9)
    time.sleep(0.1)
    clock.now, probe._timeout_s = 0.5, 1.0
    assert probe(12) == QueueStatus(6, 2, PIDS, 23, taken=12)


def test_an_answer_that_does_not_come_is_given_up(management):
    probe, clock = make_probe(management, timeout_s=0.005)
    management["delay_s"] = 0.2
    assert probe(7) is None
    management.update(delay_s=0.0)
    clock.now, probe._timeout_s = 1.1, 1.0
    assert probe(8) == QueueStatus(5, 2, PIDS, 22, taken=8)


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
    assert probe() == QueueStatus(5, 2, PIDS, 22)


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
