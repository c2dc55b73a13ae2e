"""The management probe: reads from TorchServe how many requests are waiting for a model."""

import json
import logging
import math
import os
import select
import time
from collections.abc import Callable
from dataclasses import replace
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from urllib.parse import quote, urlsplit

from elasticlm.errors import InputError
from elasticlm.serving.signals import QueueStatus

logger = logging.getLogger(__name__)

PROBE_TIMEOUT_S = 0.005
"""How long a batch waits for an answer. One that comes later is used for a later batch."""
SLOW_PAUSE_S = 0.1
"""After a late answer, no batch waits for this long: in a burst the server is busy with other things."""
FAILED_PAUSE_S, REFUSED_PAUSE_S = 0.1, 1.0
"""Pauses after a failed connection and after a refusal, so that a closed management port costs almost nothing."""
GIVE_UP_S = 1.0
"""After this time an answer is no longer expected."""
LONGEST_REPLY = 1 << 20
"""Bytes of an answer that are read at most."""


class ManagementProbe:
    """Asks TorchServe's management API about the queue. Returns None instead of raising, whatever answers.

    Args:
        url: the management address, `http://127.0.0.1:8081`.
        model_name: the name under which the model is served.
        key_file: the key_file.json with the management token; it is read again whenever a token is refused.
        worker_pid: process id of this worker. It must be among the model's workers; otherwise `url` belongs to another
            server.
    """

    def __init__(
        self,
        url: str,
        model_name: str,
        *,
        key_file: str | None = None,
        worker_pid: int | None = None,
        timeout_s: float = PROBE_TIMEOUT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        address = urlsplit(url)
        self._url, self._path = url, f"/models/{quote(model_name)}"
        self._connection = HTTPConnection(address.hostname or "127.0.0.1", address.port or 80, timeout=timeout_s)
        self._key_file, self._timeout_s = key_file, timeout_s
        self._pid = os.getpid() if worker_pid is None else worker_pid
        self._clock = clock
        self._quiet_until = self._impatient_until = -math.inf
        self._asked: tuple[float, int] | None = None
        self._warned: set[str] = set()
        self._headers = self._read_headers()

    def __call__(self, taken: int = 0) -> QueueStatus | None:
        """Return the newest answer: to this question, or to an earlier one if its answer has come since.

        Args:
            taken: requests that the workers have taken from the queue so far; returned with the answer.
        """
        late = None
        if self._asked and self._clock() - self._asked[0] > GIVE_UP_S:
            self._fail(0.0)
        if self._asked:
            late = self._answer(0.0)
            if self._asked:
                return None
        if self._clock() < self._quiet_until:
            return late
        try:
            self._connection.request("GET", self._path, headers=self._headers)
        except (OSError, HTTPException, ValueError) as error:  # ValueError: a key that no header can carry
            self._unreachable(error)
            return late
        self._asked = self._clock(), taken
        answer = self._answer(self._timeout_s if self._clock() >= self._impatient_until else 0.0)
        if self._asked:
            self._impatient_until = max(self._impatient_until, self._clock() + SLOW_PAUSE_S)
        return answer or late

    def _answer(self, wait_s: float) -> QueueStatus | None:
        """Return the answer to the last question; None if it has not come within `wait_s`, or is of no use."""
        assert self._asked
        poll = select.poll()
        poll.register(self._connection.sock, select.POLLIN)
        if not poll.poll(math.ceil(1e3 * wait_s)):
            return None
        (_, taken), self._asked = self._asked, None
        try:
            reply = self._connection.getresponse()
            body = reply.read(LONGEST_REPLY)
        except (OSError, HTTPException, ValueError) as error:
            self._unreachable(error)
            return None
        if reply.status != 200:
            self._headers = self._read_headers()
            self._warn(f"management API at {self._url} refuses (HTTP {reply.status}): check management_key_file")
            self._quiet_until = self._clock() + REFUSED_PAUSE_S
            return None
        try:
            status = read_status(body)
        except InputError as error:  # the rest of an endless answer is not read
            self._warn(f"management API at {self._url} is not TorchServe's ({error}): check management_url")
            self._fail(REFUSED_PAUSE_S)
            return None
        if self._pid not in status.pids:
            self._warn(f"management API at {self._url} does not list this worker: check management_url")
            self._quiet_until = self._clock() + REFUSED_PAUSE_S
            return None
        return replace(status, taken=taken)

    def _unreachable(self, error: Exception) -> None:
        if not isinstance(error, TimeoutError):
            self._warn(f"management API at {self._url} cannot be reached ({error})")
        self._fail(FAILED_PAUSE_S)

    def _fail(self, pause_s: float) -> None:
        """Close the connection, so that a late answer is not taken for the next one, and ask nothing for a while."""
        self._connection.close()
        self._asked = None
        self._quiet_until = self._clock() + pause_s

    def _warn(self, problem: str) -> None:
        if problem not in self._warned:
            self._warned.add(problem)
            logger.warning("%s; until it answers, the queue is estimated from batch fill and request ages", problem)

    def _read_headers(self) -> dict[str, str]:
        try:
            key = json.loads(Path(self._key_file).read_text())["management"]["key"] if self._key_file else None
        except (OSError, ValueError, LookupError, TypeError) as error:
            self._warn(f"{self._key_file}: no management key ({error})")
            key = None
        return {"Authorization": f"Bearer {key}"} if key else {}


def read_status(body: bytes) -> QueueStatus:
    """Return the queue and the workers from the body of `GET /models/NAME`.

    Raises InputError if the body is anything else.
    """
    try:
        model = json.loads(body)[0]
        workers = [(worker["pid"], worker["status"]) for worker in model["workers"]]
        queue = model["jobQueueStatus"]
        pending, left = queue["pendingRequests"], queue.get("remainingCapacity")
        pids = frozenset(pid for pid, _ in workers)
    except (ValueError, TypeError, LookupError, RecursionError):
        raise InputError("it does not answer with the status of a model") from None
    if type(pending) is not int or pending < 0 or any(type(pid) is not int for pid in pids):
        raise InputError("it does not answer with the status of a queue")
    capacity = pending + left if type(left) is int else None
    return QueueStatus(pending, max(1, sum(status == "READY" for _, status in workers)), pids, capacity)
