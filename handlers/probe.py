"""The management probe: reads from TorchServe how many requests are waiting for a model."""

import json
import logging
import math
import os
import time
from collections.abc import Callable
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from urllib.parse import quote, urlsplit

from elasticlm.errors import InputError
from elasticlm.serving.signals import QueueStatus

logger = logging.getLogger(__name__)

PROBE_TIMEOUT_S = 0.005
"""Maximum time to wait for the management API."""
FAILED_PAUSE_S, REFUSED_PAUSE_S = 0.1, 1.0
"""Pauses after a missing answer and after a refusal, so that a closed management port costs almost nothing."""
LONGEST_REPLY = 1 << 20
"""Bytes of an answer that are read at most."""


class ManagementProbe:
    """Reads the queue from TorchServe's management API. Returns None instead of raising, whatever answers.

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
        self._key_file = key_file
        self._pid = os.getpid() if worker_pid is None else worker_pid
        self._clock = clock
        self._quiet_until = -math.inf
        self._warned: set[str] = set()
        self._headers = self._read_headers()

    def __call__(self) -> QueueStatus | None:
        if self._clock() < self._quiet_until:
            return None
        try:
            self._connection.request("GET", self._path, headers=self._headers)
            reply = self._connection.getresponse()
            body = reply.read(LONGEST_REPLY)
        except (OSError, HTTPException, ValueError) as error:  # ValueError: a key that no header can carry
            self._connection.close()  # a late answer must not be read as the next one
            if not isinstance(error, TimeoutError):
                self._warn(f"management API at {self._url} cannot be reached ({error})")
            self._rest(FAILED_PAUSE_S)
            return None
        if reply.status != 200:
            self._headers = self._read_headers()
            self._warn(f"management API at {self._url} refuses (HTTP {reply.status}): check management_key_file")
            self._rest(REFUSED_PAUSE_S)
            return None
        try:
            status = read_status(body)
        except InputError as error:
            self._connection.close()  # the rest of an endless answer is not read
            self._warn(f"management API at {self._url} is not TorchServe's ({error}): check management_url")
            self._rest(REFUSED_PAUSE_S)
            return None
        if self._pid not in status.pids:
            self._warn(f"management API at {self._url} does not list this worker: check management_url")
            self._rest(REFUSED_PAUSE_S)
            return None
        return status

    def _rest(self, pause_s: float) -> None:
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
        pending = model["jobQueueStatus"]["pendingRequests"]
        pids = frozenset(pid for pid, _ in workers)
    except (ValueError, TypeError, LookupError, RecursionError):
        raise InputError("it does not answer with the status of a model") from None
    if type(pending) is not int or pending < 0 or any(type(pid) is not int for pid in pids):
        raise InputError("it does not answer with the status of a queue")
    return QueueStatus(pending, max(1, sum(status == "READY" for _, status in workers)), pids)
