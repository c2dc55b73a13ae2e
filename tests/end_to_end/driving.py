"""What the end-to-end tests send to a server: single requests, and rushes that form a queue."""

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import requests
import torch

MEANS_MS = {100: 60.0, 50: 40.0, 10: 5.0}
"""Service times of the table: of 200 ms x .5, level 100 keeps to it alone, 50 with one request behind, 10 with more."""
SCHEDULE = {"latency_budget_ms": 200, "policy": "slack", "alpha": 0.5, "late": "answer", "correct_table": False}
QUERIES = [f"how {adjective} is the {noun}" for adjective in ("high", "old", "slow") for noun in ("moon", "ice", "sea")]


def ask(server, name, body, **headers):
    return requests.post(f"{server.inference_url}/predictions/{name}", json=body, headers=headers, timeout=30)


def ask_idle(server, name, body, *, level=100, **headers):
    """Ask until the answer comes from this level: on a busy machine the management API is late now and then."""
    deadline = time.monotonic() + 15
    while (reply := ask(server, name, body, **headers)).ok and reply.headers["X-Elastic-Level"] != str(level):
        assert time.monotonic() < deadline, f"not at level {level}: {reply.headers}"
        time.sleep(0.2)
    return reply


def rush(server, name, bodies, headers=dict):
    """Send all bodies at the same moment; return the responses in their order. ``headers`` makes those of a request.

    The workers stand still until nothing more joins the queue: on a fast machine they would be done with each request
    before the next one comes.
    """
    ready = threading.Barrier(len(bodies) + 1)

    def send(body):
        with requests.Session() as session:
            session.get(f"{server.inference_url}/ping", timeout=30)  # connects, so that only the request is left to do
            ready.wait(60)
            url = f"{server.inference_url}/predictions/{name}"
            return session.post(url, json=body, headers=headers(), timeout=30)

    with ThreadPoolExecutor(len(bodies)) as pool:
        replies = [pool.submit(send, body) for body in bodies]
        with standing_still(server.workers(name)):
            ready.wait(60)
            seen = [-1, -2]
            while len(set(seen[-3:])) > 1:
                time.sleep(0.03)
                seen.append(server.describe(name)["jobQueueStatus"]["pendingRequests"])
        return [reply.result() for reply in replies]


@contextmanager
def standing_still(workers):
    """Stop these worker processes, and let them go on at the end; one that was killed meanwhile stays dead."""
    for worker in workers:
        os.kill(worker["pid"], signal.SIGSTOP)
    try:
        yield
    finally:
        for worker in workers:
            with suppress(ProcessLookupError):
                os.kill(worker["pid"], signal.SIGCONT)


def max_diff(left, right):
    return (torch.as_tensor(left) - torch.as_tensor(right)).abs().max().item()
