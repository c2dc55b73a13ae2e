"""The handler class that TorchServe calls: it passes batches to the serving core and returns the responses.

The archive holds this file at its root, next to `elasticlm/`, which contains the rest of the code.
"""

import os
import sys
from pathlib import Path

if __name__ == "elastic_handler":  # in an archive: use its packages, not other copies on the path
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the archive contains the model
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the settings control the number of threads

import gc
import json
import time
from typing import Any

from ts.context import Context

from elasticlm.handlers.emission import Emitter
from elasticlm.handlers.probe import ManagementProbe
from elasticlm.handlers.torchserve_settings import read_handler_section
from elasticlm.serving.core import ServingCore
from elasticlm.serving.shared_counts import open_counts
from elasticlm.serving.signals import QueueSignal
from elasticlm.serving.wire import RawRequest


class ElasticHandler:
    """Adapts the serving core to TorchServe."""

    def initialize(self, context: Context) -> None:
        """Load the archive and run every level once; the worker is READY when this returns."""
        config = context.model_yaml_config or {}
        settings, server = read_handler_section(config.get("handler"))
        batch_size = context.system_properties["batch_size"] or 1
        url, key_file = server.management_url, server.management_key_file
        probe = ManagementProbe(url, context.model_name, key_file=key_file) if url else None
        self.backlog = QueueSignal(
            probe,
            batch_size=batch_size,
            workers=config.get("minWorkers") or 1,
            batch_delay_s=(config.get("maxBatchDelay") or 0) / 1e3,
            counts=open_counts(context.model_name, context.manifest["model"]["modelVersion"]),
        )
        self.core = ServingCore.open(Path(context.system_properties["model_dir"]), settings, batch_size=batch_size)
        self.emitter = Emitter()
        if probe:
            probe()  # opens the connection before the first request
        gc.collect()
        gc.freeze()  # a full collection over all that was loaded would stop the worker for 200 ms now and then

    def handle(self, data: list[dict[str, Any]], context: Context) -> list[bytes]:
        """Answer a batch, and publish its metrics."""
        backlog = self.backlog.batch_came(len(data))
        requests = [RawRequest(_body(item), _headers(context, i)) for i, item in enumerate(data)]
        responses, report = self.core.handle(requests, backlog, time.time())
        for i, response in enumerate(responses):
            for name, value in response.headers.items():
                if name == "Content-Type":
                    context.set_response_content_type(i, value)
                else:
                    context.set_response_header(i, name, value)
            context.set_response_status(response.status.value, response.status.phrase, i)
        self.emitter.emit(context.metrics, report)
        self.backlog.batch_done(report)
        return [response.body for response in responses]


def _body(item: dict[str, Any]) -> bytes:
    """Return the body of a request. Without `decode_input_request=false` TorchServe has already decoded JSON."""
    body = item.get("body")
    if body is None or isinstance(body, bytes | bytearray):
        return bytes(body or b"")
    return json.dumps(body).encode()


def _headers(context: Context, i: int) -> dict[str, str]:
    """Return the headers of request ``i``, without the content types of its parts, which TorchServe adds as dicts."""
    return {name: value for name, value in context.get_all_request_header(i).items() if isinstance(value, str)}
