"""What a request costs beside its bare pass, through the real server."""

import json

import pandas as pd
import pytest
from archives import archive, servable

from elasticlm.benchmarks.overhead import main
from elasticlm.benchmarks.overhead_timing import breakdown
from elasticlm.errors import InputError
from elasticlm.model.elastic_model import ElasticModel

MEANS_MS = {100: 3.0, 50: 2.0, 10: 1.0}


@pytest.fixture(scope="module")
def reranker(tiny_artifact, tmp_path_factory):
    folder = tmp_path_factory.mktemp("overhead")
    ElasticModel.from_pretrained(tiny_artifact).with_head("score").save_pretrained(folder / "reranker")
    return archive("reranker", servable(folder / "reranker", folder / "model", MEANS_MS), folder,
                   latency_budget_ms=100, backend="torch", precision="fp32")  # fmt: skip


@pytest.mark.slow
@pytest.mark.end_to_end
def test_stages_add_up_to_the_whole_request(reranker, tmp_path, capsys):
    given = ["--archive", str(reranker), "--requests", "5", "--level", "50", "--output", str(tmp_path / "out")]
    assert main([*given, "--most", "0.5"]) == 1  # no request is faster than its own bare pass
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["shape"], result["level"], result["requests"]) == ("8x128", "50", 5)
    means = {row["stage"]: row["mean ms"] for row in result["stages"]}
    whole, _ = means.pop("whole request"), means.pop("bare forward pass")
    assert {"signal", "parse", "tokenize", "decide", "forward", "encode", "TorchServe and wire"} <= set(means)
    assert sum(means.values()) == pytest.approx(whole, abs=0.01)
    assert list(pd.read_csv(tmp_path / "out/overhead.csv")["stage"])[-1] == "bare forward pass"


@pytest.mark.slow
@pytest.mark.end_to_end
def test_the_cost_of_changing_the_level_is_measured_on_both_levels(reranker, tmp_path, capsys):
    given = ["--archive", str(reranker), "--requests", "20", "--switching", "--output", str(tmp_path / "out")]
    assert main([*given, "--most", "0.01"]) == 1
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {row["level"] for row in result["median_ms"]} == {"100", "10"}
    times = pd.read_csv(tmp_path / "out/switching.csv")
    assert times.groupby(["level", "kind"]).size().tolist() == [20] * 4


def test_a_level_that_is_not_there_is_refused(reranker, tmp_path):
    with pytest.raises(InputError, match="--level 30"):
        main(["--archive", str(reranker), "--level", "30", "--output", str(tmp_path / "out")])


def test_shares_are_those_of_the_mean_request():
    whole, stages, bare = pd.Series([10.0, 20.0]), pd.DataFrame({"forward": [6.0, 9.0]}), pd.Series([5.0, 7.0])
    rows = {row["stage"]: row for row in breakdown(whole, stages, bare, "TorchServe")}
    assert (rows["forward"]["mean ms"], rows["forward"]["share of the whole %"]) == (7.5, 50.0)
    assert (rows["TorchServe and wire"]["mean ms"], rows["bare forward pass"]["median ms"]) == (7.5, 6.0)
