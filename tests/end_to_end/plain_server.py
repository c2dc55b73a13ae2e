"""An adapter for Python's own HTTP server, to show what an adapter of the serving core needs. For tests only."""

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from elasticlm.serving.backlog import Backlog
from elasticlm.serving.bundle import unpack
from elasticlm.serving.core import ServingCore
from elasticlm.serving.settings import Settings
from elasticlm.serving.wire import RawRequest


class PlainServer(ThreadingHTTPServer):
    """Serves one archive on a free loopback port, one request at a time; the others wait for their turn."""

    daemon_threads, request_queue_size = True, 256

    def __init__(self, archive: Path, folder: Path) -> None:
        _, config = unpack(archive, folder).read_settings()
        self.core = ServingCore.open(folder, Settings.of_section(config["handler"]))
        self.turn, self.counting, self.waiting = threading.Lock(), threading.Lock(), 0
        super().__init__(("127.0.0.1", 0), PlainHandler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def answer(self, request: RawRequest):
        """Wait for the turn of a request, and return its response."""
        arrived_s = time.monotonic()
        self._count(+1)
        with self.turn:
            self._count(-1)
            age_ms = (time.monotonic() - arrived_s) * 1e3
            backlog = Backlog(queue_depth=self.waiting, ages_ms=(age_ms,))
            (response,), _ = self.core.handle([request], backlog, time.time())
            return response

    def _count(self, change: int) -> None:
        with self.counting:
            self.waiting += change


class PlainHandler(BaseHTTPRequestHandler):
    server: PlainServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        response = self.server.answer(RawRequest(body, dict(self.headers)))
        self.send_response(response.status)
        for name, value in response.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(response.body)

    def log_message(self, *args) -> None:
        pass
