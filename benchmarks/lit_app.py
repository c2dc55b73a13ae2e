"""The process that elasticlm.benchmarks.lit_server starts: the largest level of an artifact, served by LitServe."""

import json
import sys
from typing import Any

import litserve
from starlette.responses import Response

from elasticlm.model.elastic_model import ElasticModel


class Static(litserve.LitAPI):
    """Embeds one text per request.

    Args:
        artifact: artifact folder.
        name: under which it answers `POST /predictions/NAME`.
        options: backend, precision and threads, as ElasticModel.from_pretrained takes them.
    """

    def __init__(self, artifact: str, name: str, options: dict[str, Any]) -> None:
        super().__init__(api_path=f"/predictions/{name}")
        self.artifact, self.options = artifact, options

    def setup(self, device: str) -> None:
        self.model = ElasticModel.from_pretrained(self.artifact, **self.options)

    def decode_request(self, request: dict[str, Any]) -> str:
        return request["text"]

    def predict(self, text: str) -> list[float]:
        return self.model.embed([text])[0].tolist()

    def encode_response(self, output: list[float]) -> Response:
        level = str(self.model.structures.largest)
        body = json.dumps({"embedding": output, "level": int(level)})
        return Response(body, media_type="application/json", headers={"X-Elastic-Level": level})


def main(artifact: str, name: str, port: str, *options: str) -> None:
    """Serve on loopback until the process is ended."""
    given: dict[str, Any] = dict(each.split("=", 1) for each in options)
    api = Static(artifact, name, given | {"threads": int(given["threads"])})
    server = litserve.LitServer(api, accelerator="cpu", timeout=False)
    server.run(host="127.0.0.1", port=int(port), generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    main(*sys.argv[1:])
