"""The Locust driver against a server that takes its time: closed loop, open loop, no answer."""

import json
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from elasticlm.benchmarks.arrivals import parse_arrivals
from elasticlm.benchmarks.drive import LOCUSTFILE, Traffic, drive, newest_rows
from elasticlm.benchmarks.replay import Request, write_requests

SERVICE_S = 0.05


class Slow(BaseHTTPRequestHandler):
    """Answers requests one at a time, each with its own body after SERVICE_S; /predictions/silent never answers."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.starts.append(self.headers["X-Request-Start"])
        with self.server.one_at_a_time:
            time.sleep(60 if self.path.endswith("silent") else SERVICE_S)
        self.server.answered.append(self.path)
        self.send_response(200)
        self.send_header("X-Elastic-Level", "12.5")
        self.send_header("X-Elastic-Queue-Depth", "4")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class OneAtATime(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 100


@pytest.fixture
def server():
    with OneAtATime(("127.0.0.1", 0), Slow) as running:
        running.starts, running.answered, running.one_at_a_time = [], [], threading.Lock()
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture
def requests_file(tmp_path):
    file = tmp_path / "requests.jsonl"
    write_requests(file, [Request(f'"{i}", ü', json.dumps({"text": f"why {i}"})) for i in range(9)])
    return file


def run(server, requests_file, model="mini", drain_s=10.0, **traffic):
    return drive(f"http://127.0.0.1:{server.server_port}", model, requests_file, Traffic(**traffic), drain_s=drain_s)


def test_users_send_wait_and_pause_and_every_answer_is_kept(server, requests_file):
    driven = run(server, requests_file, duration_s=3, users=4, spawn_rate=2, pause_s=(0.2, 0.4))
    rows = driven.rows
    assert (rows["status"] == 200).all()
    assert (rows["latency_ms"] >= 1000 * SERVICE_S).all()
    assert rows["t_s"].is_monotonic_increasing
    assert rows["t_s"].max() < 3
    assert rows["users"].max() == 4
    assert rows["users"].iloc[0] <= 2
    assert set(rows["level"]) == {"12.5"}
    assert set(rows["queue_depth"]) == {4}
    asked = {f'"{i}", ü': {"text": f"why {i}"} for i in range(9)}
    assert [json.loads(body) for body in driven.bodies] == [asked[query_id] for query_id in rows["query_id"]]
    assert driven.client_cpu > 0


def test_users_who_come_in_the_same_second_do_not_send_at_once(server, requests_file):
    rows = run(server, requests_file, duration_s=2, users=8, spawn_rate=8, pause_s=(5, 5)).rows
    assert len(rows) == 8
    assert np.diff(rows["t_s"]).min() > 0.03
    assert np.ptp(rows["t_s"]) > 0.5


def test_two_runs_send_every_user_the_same_queries(server, requests_file):
    first, second = (run(server, requests_file, duration_s=2, users=1, pause_s=(0.1, 0.2)) for _ in range(2))
    count = min(len(first.rows), len(second.rows))
    assert count > 5
    assert first.rows["query_id"][:count].tolist() == second.rows["query_id"][:count].tolist()


def test_an_open_loop_keeps_its_times_and_counts_latency_from_them(server, requests_file):
    """30 requests a second to a server that answers 20: the wait grows by half a second a second."""
    driven = run(server, requests_file, duration_s=3, arrivals="poisson:30", seed=1)
    rows, due_s = driven.rows, parse_arrivals("poisson:30").times_s(3, seed=1)
    assert np.abs(rows["t_s"].to_numpy() - due_s).max() < 1e-3
    assert (rows["status"] == 200).all()
    fair_ms = 1000 * (SERVICE_S * np.arange(1, len(rows) + 1) - due_s)
    assert rows["latency_ms"].iloc[-1] > 0.8 * fair_ms[-1] > 800
    started = np.array([float(text.removeprefix("t=")) for text in server.starts])
    assert np.ptp(started) == pytest.approx(np.ptp(due_s), abs=1e-3)


@pytest.mark.parametrize("written", range(14))
def test_the_newest_rows_can_be_read_wherever_the_last_bytes_begin(tmp_path, written):
    file, row = tmp_path / "trace.csv", "üüü,200,12\n".encode()
    file.write_bytes(b"query_id,status,length\n" + row * 500 + row[:written])
    newest = newest_rows(file)
    assert 280 < len(newest) < 500
    assert {tuple(found.values()) for found in newest} == {("üüü", "200", "12")}


def test_requests_without_an_answer_are_rows_with_status_0(server, requests_file):
    driven = run(server, requests_file, "silent", drain_s=0.5, duration_s=1, users=3, spawn_rate=10)
    assert not any(path.endswith("silent") for path in server.answered)  # the driver did not wait for them
    assert driven.rows["status"].tolist() == [0] * 3
    assert driven.rows["level"].isna().all()
    assert driven.bodies == [b""] * 3


def test_the_start_header_can_be_left_out(server, requests_file):
    run(server, requests_file, duration_s=1, request_start=False)
    assert set(server.starts) == {None}


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--arrivals", "poisson:x"], "expected trace:FILE.csv, poisson:RATE"),
        (["--pause", "3,1"], "SHORTEST,LONGEST"),
        (["--queries", "nowhere.txt"], "nowhere.txt"),
    ],
)
def test_by_hand_wrong_options_end_it_at_once(option, message):
    command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless", "--host", "http://127.0.0.1:9"]
    ended = subprocess.run([*command, *option], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr
