"""Serve archives with Ray Serve.

    serve run elasticlm.handlers.ray_app:build archive=model_store/search.mar

Requests wait in a replica of their archive (elasticlm.serving.request_queue), which knows their ages and their number
exactly, and not in Ray Serve's router. A single archive's replicas receive them over HTTP themselves. Several archives
have an ingress, which stamps the arrival of each request and passes it on. It sends the requests that a lost replica
held to another one.
"""

import asyncio
import gc
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from typing import Any

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
from elasticlm.handlers.ray_arguments import Arguments, ServedArchive
from elasticlm.handlers.ray_scaling import WORK_RATE, WorkRate
from elasticlm.hints import unknown
from elasticlm.serving.client_apis import APIS, Api
from elasticlm.serving.request_queue import RequestQueue, count_rows, error_response
from elasticlm.serving.requests import LATE, NOT_FOUND, UNAVAILABLE, RequestError
from elasticlm.serving.telemetry import BatchReport
from elasticlm.serving.wire import RawRequest, Response

logger = logging.getLogger(__name__)

ATTEMPTS = 3
"""How many replicas a request is sent to, at most, if they are lost before they answer."""
INGRESS_CPUS = 0.2
"""CPUs that Ray reserves for an ingress."""
DEFAULT_RULE = "ray.serve.autoscaling_policy:default_autoscaling_policy"
NO_ACCESS_LOG = {"enable_access_log": False}
"""Ray Serve's proxies log every request already."""
HEADROOM = 100
"""Requests beyond the bound of the queue that a replica receives, in order to refuse them itself at once."""


class Model:
    """One archive's core, and the queue in front of it."""

    def __init__(self, served: ServedArchive) -> None:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the archive contains the model
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the settings control the number of threads
        from elasticlm.handlers.ray_metrics import RayEmitter
        from elasticlm.serving.bundle import unpack
        from elasticlm.serving.core import ServingCore

        self.timeout_s = served.timeout_s
        self.unpacked = None
        if not os.path.isdir(served.path):
            self.unpacked = tempfile.mkdtemp(prefix="elasticlm-")
            unpack(served.path, Path(self.unpacked))
        folder = Path(self.unpacked or served.path)
        core = ServingCore.open(folder, served.settings, batch_size=served.batch_size)
        self.emitter, self.work_rate = RayEmitter(), WorkRate()
        self.queue = RequestQueue(core, bound=served.queue_size, publish=self._publish)
        gc.collect()
        gc.freeze()  # a full collection over all that was loaded would stop the replica for 200 ms now and then

    async def answer(self, request: RawRequest, rows: int) -> Response:
        """Return the response to a request in our wire format."""
        return await asyncio.wrap_future(self.queue.submit(request, rows))

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Return what Ray Serve passes to `scale_by_demand`."""
        return {WORK_RATE: self.work_rate()}

    def check_health(self) -> None:
        """Raise RuntimeError if no request can be answered; Ray Serve then replaces the replica."""
        if not self.queue.is_alive():
            raise RuntimeError("the queue's thread has ended")
        if (busy_s := self.queue.busy_s()) > self.timeout_s:
            raise RuntimeError(f"a batch has been running for {busy_s:.0f} s")

    def __del__(self) -> None:
        if hasattr(self, "queue"):
            self.queue.close()
        if getattr(self, "unpacked", None):
            shutil.rmtree(str(self.unpacked), ignore_errors=True)

    def _publish(self, report: BatchReport) -> None:
        self.work_rate.add(report.work_s)
        self.emitter.emit(report)


class Front:
    """Receives requests over HTTP, in our wire format and in those of client_apis.

    Args:
        served: the archives, by name.
    """

    def __init__(self, served: Mapping[str, ServedArchive]) -> None:
        self.served = served

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

    async def _answer(self, name: str, request: RawRequest, rows: int) -> Response:
        """Return the response of an archive to a request in our wire format."""
        raise NotImplementedError

    async def _predict(self, request: HTTPRequest) -> HTTPResponse:
        name = request.path_params["name"]
        if name not in self.served:
            error = RequestError("unknown_model", unknown("model", name, list(self.served)), NOT_FOUND)
            return _http(error_response(error))
        body = await _body(request, self.served[name].settings.max_body_bytes)
        return _http(await self._answer(name, RawRequest(body, dict(request.headers)), count_rows(body)))

    def _translated(self, api: Api) -> Any:
        async def answer(request: HTTPRequest) -> HTTPResponse:
            largest = max(each.settings.max_body_bytes for each in self.served.values())
            try:
                call = api.call(await _body(request, largest), largest)
                name = self._archive(request.path_params.get("name", call.model), call.task)
            except RequestError as error:
                return _http(api.refuse(HTTPStatus(error.status), error.code, error.message))
            response = await self._answer(name, call.raw(request.headers), call.rows)
            return _http(api.respond(call, response, name))

        return answer

    def _archive(self, model: str | None, task: str) -> str:
        """Return the name of the archive that is asked for. Raises RequestError."""
        able = [name for name, served in self.served.items() if served.task == task]
        if model is None:
            if len(able) == 1:
                return able[0]
            found = f"name it in `model` or /models/NAME/: {', '.join(able)}" if able else "none is served here"
            raise RequestError("unknown_model", f"the request needs a model of task {task!r}; {found}", NOT_FOUND)
        if model not in self.served:
            raise RequestError("unknown_model", unknown("model", model, list(self.served)), NOT_FOUND)
        if model not in able:
            found = self.served[model].task
            raise RequestError("wrong_task", f"the task of model {model!r} is {found!r}, and this needs {task!r}")
        return model

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


Replica: Any = serve.deployment(Model)


@serve.deployment
@serve.ingress()
class Whole(Front):
    """An archive and its own front, in one process: what serves a single archive."""

    def __init__(self, served: ServedArchive) -> None:
        super().__init__({served.name: served})
        self.model = Model(served)

    async def _answer(self, name: str, request: RawRequest, rows: int) -> Response:
        return await self.model.answer(request, rows)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Return what Ray Serve passes to `scale_by_demand`."""
        return self.model.record_autoscaling_stats()

    def check_health(self) -> None:
        """Raise RuntimeError if no request can be answered."""
        self.model.check_health()


@serve.deployment
@serve.ingress()
class Ingress(Front):
    """A front of its own, which passes requests to the replicas of their archives.

    Args:
        served: the archives, by name.
        replicas: handles of their deployments, by name.
    """

    def __init__(self, served: Mapping[str, ServedArchive], replicas: Mapping[str, DeploymentHandle]) -> None:
        super().__init__(served)
        self.replicas = replicas

    async def _answer(self, name: str, request: RawRequest, rows: int) -> Response:
        """Return a replica's response; ask another replica if the first one is lost."""
        served, handle, started_s = self.served[name], self.replicas[name], time.time()
        stamped = request
        if not served.settings.trust_request_start or "x-request-start" not in request.headers:
            stamped = replace(request, headers={**request.headers, "x-request-start": f"t={started_s:.6f}"})
        reason = ""
        for _ in range(ATTEMPTS):
            asked = handle.answer.remote(stamped, rows)
            try:
                return await asyncio.wait_for(asked, served.attempt_s)
            except TimeoutError:
                asked.cancel()
                reason = f"no replica of {name} has answered within {served.attempt_s:g} s"
            except (RayActorError, RayServeException) as error:
                logger.warning("a replica of %s was lost: %s", name, error)
                reason = f"the replicas of {name} that were asked were lost"
        late = time.time() - started_s > served.settings.budget_ms / 1e3
        return error_response(RequestError("replica_lost", f"{reason}; try again", LATE if late else UNAVAILABLE))


def build(arguments: Arguments) -> serve.Application:
    """Return the application that serves the archives. Raises InputError if one of them cannot be served."""
    given = arguments.archive if isinstance(arguments.archive, list) else arguments.archive.split(",")
    archives = [ServedArchive.read(Path(path.strip()), arguments) for path in given]
    served = {each.name: each for each in archives}
    if len(served) < len(archives):
        raise InputError(f"archives of the same name: {', '.join(sorted(each.name for each in archives))}")
    if len(archives) == 1 and not arguments.separate_ingress:
        return Whole.options(**_options(archives[0], arguments)).bind(archives[0])  # type: ignore[attr-defined]
    replicas = {
        name: Replica.options(**_options(each, arguments)).bind(_stamped(each)) for name, each in served.items()
    }
    waiting = sum(_most_requests(each) for each in archives) * (arguments.max_replicas or arguments.replicas or 1)
    ingress = Ingress.options(  # type: ignore[attr-defined]
        num_replicas=arguments.ingress_replicas,
        logging_config=NO_ACCESS_LOG,
        max_ongoing_requests=waiting + HEADROOM,
        max_replicas_per_node=arguments.max_replicas_per_node,
        ray_actor_options={"num_cpus": INGRESS_CPUS},
    )
    return ingress.bind(served, replicas)


def _stamped(served: ServedArchive) -> ServedArchive:
    """Return an archive behind an ingress, which has replaced what X-Request-Start should not be trusted for."""
    return replace(served, settings=replace(served.settings, trust_request_start=True))


def _options(served: ServedArchive, arguments: Arguments) -> dict[str, Any]:
    """Return the options of an archive's deployment. Raises InputError."""
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
    replicas = arguments.replicas or arguments.min_replicas or 1
    if arguments.max_replicas is None:
        return options | {"num_replicas": replicas}
    least = arguments.min_replicas or replicas
    if not least <= replicas <= arguments.max_replicas:
        raise InputError(f"replicas is {replicas}, expected {least} (min_replicas) to {arguments.max_replicas} "
                         "(max_replicas)")  # fmt: skip
    rule = "elasticlm.handlers.ray_scaling:scale_by_demand" if arguments.scale_on == "demand" else DEFAULT_RULE
    scaling = AutoscalingConfig(
        min_replicas=least, initial_replicas=replicas, max_replicas=arguments.max_replicas,
        upscale_delay_s=arguments.upscale_delay_s, downscale_delay_s=arguments.downscale_delay_s,
        policy=AutoscalingPolicy(policy_function=rule),
    )  # fmt: skip
    return options | {"autoscaling_config": scaling}


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
