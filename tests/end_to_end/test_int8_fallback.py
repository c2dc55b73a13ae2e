"""The real TorchServe on a machine where int8 is less accurate than where it was exported."""

import re
import time
from pathlib import Path

import pytest
import requests
from archives import archive
from driving import ask, max_diff
from int8_artifacts import TEXTS, damage, make

from elasticlm.benchmarks.server import TorchServe
from elasticlm.model.elastic_model import ElasticModel

pytestmark = [pytest.mark.end_to_end, pytest.mark.slow]

METRICS = Path(__file__).parents[2] / "model_store/metrics.yaml"


def fallbacks(server):
    """The values of the metric, one per model and worker."""
    text = requests.get(f"{server.metrics_url}/metrics", timeout=5).text
    return re.findall(r"^elastic_int8_fallbacks{.*?} (\S+)$", text, re.MULTILINE)


def test_the_level_runs_in_fp32_and_a_metric_says_so(tiny_artifact, tmp_path):
    artifact = make(tiny_artifact, tmp_path / "made") / "artifact"
    damage(artifact, 50)
    packed = archive("int8", artifact, tmp_path, policy="fixed:50", latency_budget_ms=250, backend="onnx",
                     precision="int8")  # fmt: skip
    config = {"metrics_mode": "prometheus", "metrics_config": METRICS}
    with TorchServe({"int8": packed}, config=config) as server:
        answer = ask(server, "int8", {"text": TEXTS[0]}).json()
        assert answer["level"] == 50
        expected = ElasticModel.from_pretrained(artifact).embed(TEXTS[:1], level=50)[0]
        assert max_diff(answer["embedding"], expected) < 1e-5
        deadline = time.monotonic() + 30  # TorchServe reads what workers print in its own time
        while not (values := fallbacks(server)):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert values == ["1.0"]
