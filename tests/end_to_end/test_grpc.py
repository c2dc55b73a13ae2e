"""gRPC, which TorchServe cannot switch off: calls that clients abort do no harm."""

import json
import time

import grpc
import pytest
from archives import archive, servable
from driving import MEANS_MS, ask, max_diff, standing_still

from elasticlm.benchmarks.server import TorchServe
from elasticlm.handlers.packing import SERVER_SETTINGS

pytestmark = [pytest.mark.end_to_end, pytest.mark.slow]

# The client's clock and the server's, to which the deadline travels, end the call in either order.
ENDED_EARLY = {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}
PREDICTIONS = "/org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions"


def delimited(field, content):
    """A field of a protocol buffer with fewer than 128 bytes."""
    return bytes([field << 3 | 2, len(content)]) + content


def request_of(model, body):
    """PredictionsRequest {1: model_name, 3: map of inputs}."""
    return delimited(1, model.encode()) + delimited(3, delimited(1, b"body") + delimited(2, json.dumps(body).encode()))


def test_calls_that_end_before_their_answer_do_not_harm_the_worker(tiny_artifact, model, tmp_path):
    packed = archive("mini", servable(tiny_artifact, tmp_path / "artifact", MEANS_MS), tmp_path, policy="fixed:100")
    with TorchServe({"mini": packed}) as server:
        (before,) = server.workers("mini")
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            call = channel.unary_unary(PREDICTIONS)
            answer = call(request_of("mini", {"text": "ice"}), timeout=30)
            assert json.loads(answer[answer.index(b"{") :])["level"] == 100
            with standing_still([before]):
                for _ in range(20):
                    with pytest.raises(grpc.RpcError) as late:
                        call(request_of("mini", {"text": "ice"}), timeout=0.01)
                    assert late.value.code() in ENDED_EARLY
        deadline_s = time.monotonic() + 30
        while server.describe("mini")["jobQueueStatus"]["pendingRequests"]:
            assert time.monotonic() < deadline_s, "the aborted calls still wait"
            time.sleep(0.1)
        reply = ask(server, "mini", {"text": "ice"})
        assert max_diff(reply.json()["embedding"], model.embed(["ice"], level=100)[0]) < 1e-5
        (after,) = server.workers("mini")
        assert (after["pid"], after["status"]) == (before["pid"], "READY")
        assert "CANCELLED" in server.logs() or "cancelled" in server.logs()


def test_the_settings_that_are_shipped_keep_grpc_on_loopback():
    lines = SERVER_SETTINGS.read_text().splitlines()
    assert {"grpc_inference_address=127.0.0.1", "grpc_management_address=127.0.0.1"} <= set(lines)
