"""The real TorchServe in operation: its metrics, settings changed while it serves, and faults that happen."""

import os
import re
import socket
import statistics
import threading
import time
import zipfile
from http.server import ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import requests
import yaml
from archives import archive, servable
from driving import MEANS_MS, QUERIES, SCHEDULE, ask, ask_idle, max_diff, rush

from elasticlm.benchmarks.server import ServerError, TorchServe, free_ports
from elasticlm.benchmarks.stress_run import Website
from elasticlm.model.elastic_model import ElasticModel

pytestmark = pytest.mark.end_to_end

METRICS = Path(__file__).parents[2] / "model_store/metrics.yaml"
LOGS = ("ts_log.log", "model_log.log", "ts_metrics.log", "model_metrics.log", "access_log.log")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("operations")


@pytest.fixture(scope="module")
def mini(tiny_artifact, folder):
    """An archive without an index; its live settings stand in live.yaml."""
    artifact = servable(tiny_artifact, folder / "artifact", MEANS_MS)
    return archive("mini", artifact, folder, **SCHEDULE, live_file=str(folder / "live.yaml"))


@pytest.fixture(scope="module")
def server(mini):
    """Publishes its metrics, holds eight waiting requests, and one worker answers one request at a time."""
    config = {"metrics_mode": "prometheus", "metrics_config": METRICS}
    with TorchServe({"mini": mini}, config=config, job_queue_size=8) as running:
        yield running


@pytest.fixture(scope="module")
def model(tiny_artifact):
    return ElasticModel.from_pretrained(tiny_artifact)


def live_settings(folder, **settings):
    """Put live settings in place at once, as an operator would, and give the workers time to look."""
    new = folder / "live.yaml.new"
    new.write_text(yaml.safe_dump(settings))
    new.rename(folder / "live.yaml")
    time.sleep(1.1)


def published(server, name):
    """The values of a metric by its labels."""
    text = requests.get(f"{server.metrics_url}/metrics", timeout=5).text
    found = re.findall(rf"^{name}{{(.*?)}} (\S+)$", text, re.MULTILINE)
    return {labels: float(value) for labels, value in found}


def test_metrics_are_published_for_prometheus(server):
    for _ in range(3):
        assert ask(server, "mini", {"text": "ice"}).ok
    ask(server, "mini", {"txt": "ice"})
    deadline = time.monotonic() + 30  # TorchServe reads what workers print in its own time
    while not any('code="unknown_field"' in labels for labels in published(server, "elastic_errors_total")):
        assert time.monotonic() < deadline, published(server, "elastic_errors_total")
        time.sleep(0.1)
    by_level = published(server, "elastic_answers_total")
    assert sum(by_level.values()) >= 3
    assert all('elastic_level="' in labels for labels in by_level)  # which one: as busy as the machine is
    assert published(server, "elastic_queue_depth")
    assert sum(published(server, "elastic_work_seconds_total").values()) == pytest.approx(
        0.060 * sum(by_level.values())
    )
    assert set(published(server, "elastic_workers").values()) == {1}
    assert sum(published(server, "elastic_service_seconds_count").values()) >= 4


def test_the_turnaround_and_the_table_stages_make_up_the_real_cycle(server, folder):
    """Four clients keep the worker busy; a cycle is the time from one answer to the next."""
    live_settings(folder, policy="fixed:100")
    stop_s, table_ms, finished = time.monotonic() + 3, [], []

    def client():
        with requests.Session() as session:
            while time.monotonic() < stop_s:
                reply = session.post(f"{server.inference_url}/predictions/mini", json={"text": "ice"}, timeout=30)
                stages = dict(re.findall(r"(\w+);dur=([\d.]+)", reply.headers["Server-Timing"]))
                table_ms.append(sum(float(stages[name]) for name in ("tokenize", "forward", "convert")))
                finished.append(time.monotonic())

    clients = [threading.Thread(target=client) for _ in range(4)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    (folder / "live.yaml").unlink()
    cycle_ms = 1e3 * statistics.median(np.diff(sorted(finished)))
    time.sleep(0.5)  # TorchServe reads what workers print in its own time
    (turnaround_s,) = published(server, "elastic_turnaround_seconds").values()
    known_ms = statistics.median(table_ms) + 1e3 * turnaround_s
    print(
        f"cycle {cycle_ms:.2f} ms, table {statistics.median(table_ms):.2f} ms, turnaround {1e3 * turnaround_s:.2f} ms"
    )
    assert cycle_ms / 2 < known_ms < 2 * cycle_ms  # a busy machine is slower at one time than at another


def test_policy_and_budget_change_while_it_serves(server, folder):
    live_settings(folder, policy="fixed:50")
    assert ask(server, "mini", {"text": "ice"}).json()["level"] == 50
    live_settings(folder, policy="fixed:77")  # not there: logged, and the one before it stays
    assert ask(server, "mini", {"text": "ice"}).json()["level"] == 50
    live_settings(folder, latency_budget_ms=20)
    assert ask(server, "mini", {"text": "ice"}).json()["level"] == 10
    (folder / "live.yaml").unlink()
    time.sleep(1.1)
    assert ask_idle(server, "mini", {"text": "ice"}).json()["level"] == 100


def test_a_full_queue_answers_503_at_once_and_the_rest_is_served(server, model):
    replies = rush(server, "mini", [{"text": text} for text in QUERIES * 8])
    refused = [reply for reply in replies if reply.status_code == 503]
    served = [(reply, text) for reply, text in zip(replies, QUERIES * 8, strict=True) if reply.status_code == 200]
    assert len(refused) + len(served) == len(replies)
    assert refused, "the queue was never full"
    for reply, text in served:
        assert max_diff(reply.json()["embedding"], model.embed([text], level=reply.json()["level"])[0]) < 1e-5
    assert ask(server, "mini", {"text": "ice"}).ok


def test_a_client_that_goes_away_mid_request_harms_nobody(server, model):
    address = server.inference_url.removeprefix("http://").split(":")
    body = b'{"text": "ice"}'
    head = b"POST /predictions/mini HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    for sent in (head % len(body) + body, head % len(body) + body[:7]):  # gone before the answer, gone before the end
        with socket.create_connection((address[0], int(address[1])), timeout=5) as client:
            client.sendall(sent)
    reply = ask(server, "mini", {"text": "ice"})
    assert max_diff(reply.json()["embedding"], model.embed(["ice"], level=reply.json()["level"])[0]) < 1e-5


def test_clocks_that_disagree_cost_nothing_but_a_count(server):
    before = sum(published(server, "elastic_request_start_ignored_total").values())
    for start in (time.time() + 5, time.time() - 3600):
        assert ask_idle(server, "mini", {"text": "ice"}, **{"X-Request-Start": f"t={start:.3f}"}).json()["level"] == 100
    time.sleep(0.5)
    assert sum(published(server, "elastic_request_start_ignored_total").values()) >= before + 2


@pytest.mark.slow
def test_a_worker_killed_under_load_loses_no_request_without_a_word(server, model):
    """Every request is answered or gets a status; no answer is wrong; the worker comes back."""
    (worker,) = server.workers("mini")
    killer = threading.Timer(0.05, os.kill, (worker["pid"], 9))
    killer.start()
    texts = QUERIES[:6]
    replies = rush(server, "mini", [{"text": text} for text in texts])
    killer.join()
    for reply, text in zip(replies, texts, strict=True):
        assert reply.status_code in (200, 500, 503, 507)
        if reply.ok:
            assert max_diff(reply.json()["embedding"], model.embed([text], level=reply.json()["level"])[0]) < 1e-5
        else:
            assert reply.json()["message"]
    deadline = time.monotonic() + 60
    while not ask(server, "mini", {"text": "ice"}).ok:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert server.workers("mini")[0]["pid"] != worker["pid"]


@pytest.fixture(scope="module")
def troubled(mini, folder):
    """A second instance on the host: its management port is not where the handler looks, its disk is full for logs."""
    logs = folder / "logs"
    logs.mkdir()
    for name in LOGS:
        (logs / name).symlink_to("/dev/full")
    (nobody,) = free_ports(1)
    with TorchServe({"mini": mini}, log_dir=logs, handler={"management_url": f"http://127.0.0.1:{nobody}"}) as running:
        running.foreign_port = nobody
        yield running


@pytest.mark.slow
def test_two_instances_serve_side_by_side(server, troubled):
    assert ask(server, "mini", {"text": "ice"}).ok
    assert ask(troubled, "mini", {"text": "ice"}).ok
    assert server.workers("mini")[0]["pid"] != troubled.workers("mini")[0]["pid"]


def test_without_the_management_api_requests_are_neither_refused_nor_slowed(troubled):
    took = []
    for _ in range(30):
        start = time.perf_counter()
        reply = ask(troubled, "mini", {"text": "ice"})
        took.append(time.perf_counter() - start)
        assert reply.ok
    assert sorted(took)[15] < 0.1
    assert troubled.logs().count("cannot be reached") == 1


def test_something_else_at_the_management_address_fails_no_request(troubled):
    with ThreadingHTTPServer(("127.0.0.1", troubled.foreign_port), Website) as website:
        threading.Thread(target=website.serve_forever, daemon=True).start()
        deadline = (
            time.monotonic() + 15
        )  # the probe pauses after a refused connection, and the log comes a little later
        while "is not TorchServe's" not in troubled.logs():
            assert time.monotonic() < deadline
            assert ask(troubled, "mini", {"text": "ice"}).ok
            time.sleep(0.1)
        website.shutdown()


def test_a_full_disk_under_the_logs_stops_no_answer(troubled, model):
    for text in QUERIES:
        reply = ask(troubled, "mini", {"text": text})
        assert max_diff(reply.json()["embedding"], model.embed([text], level=reply.json()["level"])[0]) < 1e-5


def test_a_truncated_archive_is_refused_at_start_with_the_reason(mini, folder):
    broken = folder / "broken.mar"
    with zipfile.ZipFile(mini) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.compress_size)
    broken.write_bytes(mini.read_bytes()[: largest.header_offset + largest.compress_size // 2])  # within that file
    with pytest.raises(ServerError, match="unexpected EOF"), TorchServe({"broken": broken}, ready_timeout_s=30):
        pass


@pytest.mark.slow
def test_an_archive_of_a_model_that_is_not_elastic_is_refused_at_start_with_the_reason(mini, folder):
    foreign = folder / "foreign"
    with zipfile.ZipFile(mini) as packed:
        packed.extractall(foreign)
    (foreign / "artifact/config.json").write_text('{"model_type": "bert", "hidden_size": 32}')
    with pytest.raises(ServerError, match=r"config\.json"), TorchServe({"mini": foreign}, ready_timeout_s=60):
        pass
