"""Serve archives with Ray Serve.

    serve run elasticlm.handlers.ray_app:build archive=model_store/search.mar

An ingress receives requests in our wire format and in those of client_apis, stamps their arrival, and passes each to a
replica of its archive. Requests wait in the replica (elasticlm.serving.request_queue), which knows their ages and their
number exactly, and not in Ray Serve's router. Requests that a lost replica held are sent to another one.
"""

import asyncio
import gc
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from starlette.applications import Starlette
from starlette.requests import Request as HTTPRequest
from starlette.responses import JSONResponse
from starlette.responses import Response as HTTPResponse
from starlette.routing import Route

from elasticlm.errors import InputError
from elasticlm.handlers.ray_scaling import WORK_RATE, WorkRate
from elasticlm.handlers.torchserve_settings import read_handler_section
from elasticlm.hints import unknown
from elasticlm.serving.client_apis import APIS, Api
from elasticlm.serving.request_queue import RequestQueue, count_rows, error_response
from elasticlm.serving.requests import LATE, NOT_FOUND, UNAVAILABLE, RequestError
from elasticlm.serving.settings import Settings
from elasticlm.serving.telemetry import BatchReport
from elasticlm.serving.wire import RawRequest, Response

logger = logging.getLogger(__name__)

ATTEMPTS = 3
"""How many replicas a request is sent to, at most, if they are lost before they answer."""
LEAST_WAIT_S, WAIT_IN_BUDGETS = 5.0, 4.0
"""A replica that has not answered after 4 T, at least 5 s, counts as lost."""
INGRESS_CPUS = 0.2
"""CPUs that Ray reserves for an ingress."""
DEFAULT_RULE = "ray.serve.autoscaling_policy:default_autoscaling_policy"
NO_ACCESS_LOG = {"enable_access_log": False}
"""Ray Serve's proxies log every request already."""
HEADROOM = 100
"""Requests beyond the bound of the queue that a replica receives, in order to refuse them itself at once."""


class Arguments(BaseModel):
    """The arguments of `serve run elasticlm.handlers.ray_app:build NAME=VALUE ...`, or of `args` in a YAML file."""

    model_config = ConfigDict(extra="forbid")

    archive: str | list[str]
    """Archives made by `elasticlm archive`, packed or unpacked; several are separated by commas. Every node needs them
    under the same path."""
    replicas: int = Field(1, ge=1)
    """Replicas per archive; with `max_replicas`, the number to start with."""
    min_replicas: int | None = Field(None, ge=1)
    """Least number of replicas if they are scaled by demand (default: `replicas`)."""
    max_replicas: int | None = Field(None, ge=1)
    """Largest number of replicas. If it is given, replicas are scaled by demand."""
    scale_on: Literal["demand", "requests"] = "demand"
    """What the number of replicas follows: `demand` (work that arrives, see elasticlm.handlers.ray_scaling), or
    `requests`, Ray Serve's own rule (requests that are waiting or being answered)."""
    upscale_delay_s: float = Field(60.0, ge=0)
    """How long the demand has to be above 1 before a replica is added."""
    downscale_delay_s: float = Field(60.0, ge=0)
    """How long the demand has to be below 0.5 before a replica is removed."""
    max_replicas_per_node: int | None = Field(None, ge=1)
    """Largest number of replicas of an archive, and of the ingress, on one node."""
    ingress_replicas: int = Field(1, ge=1)
    """Replicas of the ingress; one per node survives the loss of a node."""
    batch_size: int | None = Field(None, ge=1)
    """B, the maximum number of requests per forward pass (default: the archive's batchSize)."""
    queue_size: int | None = Field(None, ge=1)
    """Requests that may wait in a replica; more are refused with 503 (default: the archive's jobQueueSize per worker,
    in proportion to the latency budget)."""
    num_cpus: float | None = Field(None, gt=0)
    """CPUs that Ray reserves per replica (default: the setting `threads`)."""
    policy: str | None = None
    """Replaces the archive's policy."""
    latency_budget_ms: float | None = None
    """Replaces the archive's latency budget, in ms."""
    threads: int | None = Field(None, ge=1)
    """Replaces the archive's number of threads per replica."""
    settings: dict[str, Any] = {}
    """Replaces other settings of section `handler` of the archive's model-config.yaml."""


@dataclass(frozen=True, kw_only=True)
class ServedArchive:
    """An archive, and how it is served.

    Attributes:
        path: of the archive, packed or unpacked.
        name: the archive's name, which clients use.
        task: embed, search, score or classify.
        levels: names of its levels, largest first.
        batch_size: B.
        queue_size: requests that may wait in a replica.
        timeout_s: a replica that has answered one batch for longer is not healthy.
        trust_request_start: whether clients, or proxies before the ingress, may say when a request began.
    """

    path: str
    name: str
    task: str
    levels: tuple[str, ...]
    settings: Settings
    batch_size: int
    queue_size: int
    timeout_s: float
    trust_request_start: bool

    @classmethod
    def read(cls, path: Path, arguments: Arguments) -> "ServedArchive":
        """Read what an archive says of itself, and apply the arguments. Raises InputError."""
        from elasticlm.model.structure import level_name
        from elasticlm.serving.bundle import read_facts

        facts = read_facts(path)
        section = facts.config.get("handler") or {}
        packed, _ = read_handler_section(section)
        named = {name: getattr(arguments, name) for name in ("policy", "latency_budget_ms", "threads")}
        changes = arguments.settings | {name: value for name, value in named.items() if value is not None}
        settings, _ = read_handler_section(section | changes)
        per_worker = facts.config.get("jobQueueSize", 100) / (facts.config.get("minWorkers") or 1)
        in_proportion = max(1, int(per_worker * settings.budget_ms / packed.budget_ms))
        return cls(
            path=str(path.resolve()), name=facts.name, task=facts.task, levels=tuple(map(level_name, facts.levels)),
            settings=settings,
            batch_size=arguments.batch_size or facts.config.get("batchSize") or 1,
            queue_size=arguments.queue_size or in_proportion,
            timeout_s=facts.config.get("responseTimeout", 120),
            trust_request_start=settings.trust_request_start,
        )  # fmt: skip

    @property
    def attempt_s(self) -> float:
        """How long the ingress waits for a replica."""
        return max(LEAST_WAIT_S, WAIT_IN_BUDGETS * self.settings.budget_ms / 1e3)


@serve.deployment
class Replica:
    """Holds one archive's core and the queue in front of it."""

    def __init__(self, served: ServedArchive) -> None:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the archive contains the model
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the settings control the number of threads
        from dataclasses import replace

        from elasticlm.handlers.ray_metrics import RayEmitter
        from elasticlm.serving.bundle import unpack
        from elasticlm.serving.core import ServingCore

        self.served = served
        self.unpacked = None
        if not os.path.isdir(served.path):
            self.unpacked = tempfile.mkdtemp(prefix="elasticlm-")
            unpack(served.path, Path(self.unpacked))
        settings = replace(served.settings, trust_request_start=True)  # the ingress has replaced what is not trusted
        core = ServingCore.open(Path(self.unpacked or served.path), settings, batch_size=served.batch_size)
        self.emitter, self.work_rate = RayEmitter(), WorkRate()
        self.queue = RequestQueue(core, bound=served.queue_size, publish=self._publish)
        gc.collect()
        gc.freeze()  # a full collection over all that was loaded would stop the replica for 200 ms now and then

    async def answer(self, body: bytes, headers: dict[str, str], rows: int) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body of the response to a request in our wire format."""
        response = await asyncio.wrap_future(self.queue.submit(RawRequest(body, headers), rows))
        return int(response.status), dict(response.headers), response.body

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Return what Ray Serve passes to `scale_by_demand`."""
        return {WORK_RATE: self.work_rate()}

    def check_health(self) -> None:
        """Raise RuntimeError if no request can be answered; Ray Serve then replaces the replica."""
        if not self.queue.is_alive():
            raise RuntimeError("the queue's thread has ended")
        if (busy_s := self.queue.busy_s()) > self.served.timeout_s:
            raise RuntimeError(f"a batch has been running for {busy_s:.0f} s")

    def __del__(self) -> None:
        if hasattr(self, "queue"):
            self.queue.close()
        if getattr(self, "unpacked", None):
            shutil.rmtree(str(self.unpacked), ignore_errors=True)

    def _publish(self, report: BatchReport) -> None:
        self.work_rate.add(report.work_s)
        self.emitter.emit(report)


@serve.deployment
@serve.ingress()
class Ingress:
    """Receives requests over HTTP, and passes them to the replicas of their archives.

    Args:
        served: the archives, by name.
        replicas: handles of their deployments, by name.
    """

    def __init__(self, served: Mapping[str, ServedArchive], replicas: Mapping[str, DeploymentHandle]) -> None:
        self.served, self.replicas = served, replicas

    def __serve_build_asgi_app__(self) -> Starlette:
        translated = [Route(prefix + path, self._translated(api), methods=["POST"])
                      for path, api in APIS.items() for prefix in ("", "/models/{name}")]  # fmt: skip
        return Starlette(routes=[
            Route("/predictions/{name}", self._predict, methods=["POST", "PUT"]),
            *translated,
            Route("/v1/models", self._models),
            Route("/ping", self._ping),
            Route("/health", self._ping),
            Route("/ready", self._ready),
        ])  # fmt: skip

    async def _predict(self, request: HTTPRequest) -> HTTPResponse:
        started_s = time.time()
        name = request.path_params["name"]
        if name not in self.served:
            error = RequestError("unknown_model", unknown("model", name, list(self.served)), NOT_FOUND)
            return _http(error_response(error))
        body = await _body(request, self.served[name].settings.max_body_bytes)
        return _http(await self._ask(name, RawRequest(body, dict(request.headers)), count_rows(body), started_s))

    def _translated(self, api: Api) -> Any:
        async def answer(request: HTTPRequest) -> HTTPResponse:
            started_s = time.time()
            largest = max(each.settings.max_body_bytes for each in self.served.values())
            try:
                call = api.call(await _body(request, largest), largest)
                name = self._archive(request.path_params.get("name", call.model), call.task)
            except RequestError as error:
                return _http(api.refuse(HTTPStatus(error.status), error.code, error.message))
            response = await self._ask(name, call.raw(request.headers), call.rows, started_s)
            return _http(api.respond(call, response, name))

        return answer

    def _archive(self, model: str | None, task: str) -> str:
        """Return the name of the archive that is asked for. Raises RequestError."""
        able = [name for name, served in self.served.items() if served.task == task]
        if model is None:
            if len(able) == 1:
                return able[0]
            found = (
                f"name one in model or in the URL (/models/NAME/...): {', '.join(able)}"
                if able
                else "none is served here"
            )
            raise RequestError("unknown_model", f"the request needs a model of task {task!r}; {found}", NOT_FOUND)
        if model not in self.served:
            raise RequestError("unknown_model", unknown("model", model, list(self.served)), NOT_FOUND)
        if model not in able:
            raise RequestError(
                "wrong_task", f"the task of model {model!r} is {self.served[model].task!r}, not {task!r}"
            )
        return model

    async def _ask(self, name: str, request: RawRequest, rows: int, started_s: float) -> Response:
        """Return a replica's response; ask another replica if the first one is lost."""
        served, handle = self.served[name], self.replicas[name]
        headers = dict(request.headers)
        if not served.trust_request_start or "x-request-start" not in headers:
            headers["x-request-start"] = f"t={started_s:.6f}"
        reason = ""
        for _ in range(ATTEMPTS):
            asked = handle.answer.remote(request.body, headers, rows)
            try:
                status, answered, body = await asyncio.wait_for(asked, served.attempt_s)
                return Response(HTTPStatus(status), answered, body)
            except TimeoutError:
                asked.cancel()
                reason = f"no replica of {name} has answered within {served.attempt_s:g} s"
            except (RayActorError, RayServeException) as error:
                logger.warning("a replica of %s was lost: %s", name, error)
                reason = f"the replicas of {name} that were asked were lost"
        late = time.time() - started_s > served.settings.budget_ms / 1e3
        return error_response(RequestError("replica_lost", f"{reason}; try again", LATE if late else UNAVAILABLE))

    async def _models(self, request: HTTPRequest) -> HTTPResponse:
        models = [{"id": name, "object": "model", "created": 0, "owned_by": "elasticlm", "task": served.task,
                   "levels": served.levels} for name, served in self.served.items()]  # fmt: skip
        return JSONResponse({"object": "list", "data": models})

    async def _ping(self, request: HTTPRequest) -> HTTPResponse:
        return JSONResponse({"status": "Healthy"})

    async def _ready(self, request: HTTPRequest) -> HTTPResponse:
        """Answer 200 once all replicas of all archives run, else 503. Ray Serve's own /-/healthz does so earlier."""
        application = serve.get_replica_context().app_name
        status = (await asyncio.to_thread(serve.status)).applications[application]
        deployments = {name: each.status for name, each in status.deployments.items()}
        content = {"status": status.status, "deployments": deployments}
        return JSONResponse(content, HTTPStatus.OK if status.status == "RUNNING" else HTTPStatus.SERVICE_UNAVAILABLE)


def build(arguments: Arguments) -> serve.Application:
    """Return the application that serves the archives. Raises InputError if one of them cannot be served."""
    given = arguments.archive if isinstance(arguments.archive, list) else arguments.archive.split(",")
    archives = [ServedArchive.read(Path(path.strip()), arguments) for path in given]
    served = {each.name: each for each in archives}
    if len(served) < len(archives):
        raise InputError(f"archives of the same name: {', '.join(sorted(each.name for each in archives))}")
    replicas = {name: _replica_options(each, arguments).bind(each) for name, each in served.items()}
    waiting = sum(_most_requests(each) for each in archives) * (arguments.max_replicas or arguments.replicas)
    ingress = Ingress.options(  # type: ignore[attr-defined]
        num_replicas=arguments.ingress_replicas,
        logging_config=NO_ACCESS_LOG,
        max_ongoing_requests=waiting + HEADROOM,
        max_replicas_per_node=arguments.max_replicas_per_node,
        ray_actor_options={"num_cpus": INGRESS_CPUS},
    )
    return ingress.bind(served, replicas)


def _replica_options(served: ServedArchive, arguments: Arguments) -> Any:
    cpus = arguments.num_cpus or served.settings.threads
    options: dict[str, Any] = {
        "name": served.name,
        "logging_config": NO_ACCESS_LOG,
        "max_ongoing_requests": _most_requests(served),
        "max_replicas_per_node": arguments.max_replicas_per_node,
        "ray_actor_options": {"num_cpus": cpus},
        "health_check_period_s": 5,
        "health_check_timeout_s": 10,
    }
    if arguments.max_replicas is None:
        return Replica.options(**options, num_replicas=arguments.replicas)  # type: ignore[attr-defined]
    least = arguments.min_replicas or arguments.replicas
    if not least <= arguments.replicas <= arguments.max_replicas:
        raise InputError(f"replicas is {arguments.replicas}, expected {least} (min_replicas) to "
                         f"{arguments.max_replicas} (max_replicas)")  # fmt: skip
    rule = "elasticlm.handlers.ray_scaling:scale_by_demand" if arguments.scale_on == "demand" else DEFAULT_RULE
    scaling = AutoscalingConfig(
        min_replicas=least, initial_replicas=arguments.replicas, max_replicas=arguments.max_replicas,
        upscale_delay_s=arguments.upscale_delay_s, downscale_delay_s=arguments.downscale_delay_s,
        policy=AutoscalingPolicy(policy_function=rule),
    )  # fmt: skip
    return Replica.options(**options, autoscaling_config=scaling)  # type: ignore[attr-defined]


def _most_requests(served: ServedArchive) -> int:
    return served.queue_size + served.batch_size + HEADROOM


async def _body(request: HTTPRequest, largest: int) -> bytes:
    """Return the body of a request, or the first bytes of one that is too large."""
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        parts.append(part)
        size += len(part)
        if size > largest:
            break
    return b"".join(parts)


def _http(response: Response) -> HTTPResponse:
    return HTTPResponse(response.body, int(response.status), dict(response.headers))
