"""int8 that answers worse here than where it was exported is not served: its levels run in fp32."""

import json
import shutil

import numpy as np
import onnx
import pytest
from archives import index_of
from int8_artifacts import INT8_MS, TEXTS, damage, make, table
from onnx import TensorProto, numpy_helper

from elasticlm.backend import graph_hashes
from elasticlm.backend.graph_hashes import graphs_folder, listed
from elasticlm.backend.int8_reference import REFERENCE_FILE, Reference
from elasticlm.backend.onnx_export import ensure_exported
from elasticlm.errors import InputError
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.retrieval.passage_texts import PassageTexts
from elasticlm.schedule.cascade import MeasuredPair, write_pairs
from elasticlm.schedule.latency import Setup
from elasticlm.schedule.load import Load
from elasticlm.serving.backlog import Backlog
from elasticlm.serving.core import ServingCore
from elasticlm.serving.engine import Answerer, load_with_latency
from elasticlm.serving.requests import Classify, Embed, Score, Search
from elasticlm.serving.settings import Settings
from elasticlm.serving.wire import RawRequest

IDLE = Load(queue_depth=0)
SETTINGS = Settings(latency_budget_ms=250.0)


@pytest.fixture(scope="module")
def good(tiny_artifact, tmp_path_factory):
    return make(tiny_artifact, tmp_path_factory.mktemp("int8") / "good")


@pytest.fixture
def folder(good, tmp_path):
    return shutil.copytree(good, tmp_path / "served")


def open_core(folder):
    return ServingCore.open(folder, Settings(latency_budget_ms=250.0, backend="onnx", precision="int8"))


def answers(engine, requests):
    return [answer.body for answer in engine.answer(requests, IDLE)]


def fixed(folder, level, **settings):
    return Answerer(folder, Settings(latency_budget_ms=250.0, policy=f"fixed:{level}", **settings))


def test_good_graphs_are_served_in_int8(folder, caplog):
    model, served, fallbacks = load_with_latency(folder / "artifact", SETTINGS)
    assert (fallbacks, model.backend.name, model.backend.precision) == (0, "onnx", "int8")
    assert {level: served.mean_ms(level) for level in INT8_MS} == INT8_MS
    assert not caplog.records
    _, report = open_core(folder).handle([RawRequest(b'{"text": "snow"}')], Backlog(queue_depth=0), 0.0)
    assert report.int8_fallbacks == 0


@pytest.mark.parametrize("fp32_graphs", [False, True])
def test_a_damaged_level_is_served_in_fp32_with_its_times_and_the_others_in_int8(folder, caplog, fp32_graphs):
    artifact = folder / "artifact"
    plain = ElasticModel.from_pretrained(artifact)
    int8 = ElasticModel.from_pretrained(artifact, backend="onnx", precision="int8")
    if fp32_graphs:
        ensure_exported(plain, artifact, "fp32")
    damage(artifact, 50)
    damaged = ElasticModel.from_pretrained(artifact, backend="onnx", precision="int8")
    request = Embed(text=TEXTS[0], kind="query")
    wanted = {50: plain, 100: int8, 10: int8}
    assert abs(damaged.embed(TEXTS[:1], level=50) - plain.embed(TEXTS[:1], level=50)).max() > 0.05
    for level, expected in wanted.items():
        engine = fixed(folder, level, backend="onnx", precision="int8")
        (body,) = answers(engine, [request])
        max_diff = abs(body["embedding"] - expected.embed(TEXTS[:1], level=level)[0].numpy()).max()
        assert max_diff < 1e-5, (level, max_diff)
    assert engine.int8_fallbacks == 1
    assert {level: engine.table.mean_ms(level) for level in INT8_MS} == {100: 4.0, 50: 6.0, 10: 1.0}
    backend = "onnx" if fp32_graphs else "torch"
    assert engine.model.backend.name == backend
    (line,) = {record.getMessage() for record in caplog.records}
    assert "level 50 has an error of" in line
    assert f"runs in fp32 ({backend})" in line
    _, report = open_core(folder).handle([RawRequest(b'{"text": "snow"}')], Backlog(queue_depth=0), 0.0)
    assert report.int8_fallbacks == 1


def test_values_that_are_not_finite_are_above_every_limit(folder):
    artifact = folder / "artifact"
    file = graphs_folder(artifact, "int8") / "10.onnx"
    graph = onnx.load(file)
    for each in graph.graph.initializer:
        if each.data_type == TensorProto.FLOAT and list(each.dims) == [32]:
            each.CopyFrom(numpy_helper.from_array(np.full(32, np.nan, np.float32), each.name))
    onnx.save(graph, file)
    graph_hashes._list(artifact, "int8", graph_hashes._hashes(file.parent))
    assert load_with_latency(artifact, SETTINGS)[2] == 1


def test_without_times_in_fp32_a_few_runs_scale_those_in_int8(folder):
    artifact = folder / "artifact"
    (artifact / "latency.csv").unlink()
    table(INT8_MS, Setup(backend="onnx", precision="int8")).write(artifact / "latency.csv")
    damage(artifact, 50)
    _, served, fallbacks = load_with_latency(artifact, SETTINGS)
    assert fallbacks == 1
    assert (served.mean_ms(100), served.mean_ms(10)) == (4.0, 1.0)
    assert served.mean_ms(50) != 2.0
    assert served.mean_ms(50, 4) == pytest.approx(4 * served.mean_ms(50))
    assert "levels in fp32 scaled at start" in served.notes


@pytest.mark.parametrize(("task", "labels"), [("score", None), ("classify", ["no", "maybe", "yes"])])
def test_pairs_are_checked_by_their_scores_and_answered_in_fp32(tiny_artifact, tmp_path, task, labels):
    folder = make(tiny_artifact, tmp_path / "archive", task, labels)
    artifact = folder / "artifact"
    reference = Reference.read(graphs_folder(artifact, "int8"))
    assert reference.answers["50"].shape == (len(TEXTS), len(labels or [0]))
    assert len(reference.seconds) == len(TEXTS)
    assert load_with_latency(artifact, SETTINGS)[2] == 0
    damage(artifact, 50)
    engine = fixed(folder, 50)
    assert engine.int8_fallbacks == 1
    plain = ElasticModel.from_pretrained(artifact)
    if task == "score":
        (body,) = answers(engine, [Score(query=TEXTS[0], passages=TEXTS[1:])])
        expected = plain.score(TEXTS[0], TEXTS[1:], level=50).numpy()
        assert abs(body["scores"] - expected).max() < 1e-5
    else:
        (body,) = answers(engine, [Classify(sentence1=TEXTS[0], sentence2=TEXTS[1])])
        expected = plain.classify(TEXTS[:1], TEXTS[1:2], level=50)[0].softmax(-1)
        assert list(body["scores"].values()) == pytest.approx(expected.tolist(), abs=1e-5)


def test_the_reference_is_listed_and_an_export_without_one_is_served_with_a_warning(folder, caplog):
    artifact = folder / "artifact"
    assert REFERENCE_FILE in listed(artifact, "int8")
    (graphs_folder(artifact, "int8") / REFERENCE_FILE).unlink()
    with pytest.raises(InputError, match=r"reference\.safetensors: missing"):
        load_with_latency(artifact, SETTINGS)
    config = json.loads((artifact / "config.json").read_text())
    del config["graphs"]
    (artifact / "config.json").write_text(json.dumps(config))
    model, _, fallbacks = load_with_latency(artifact, SETTINGS)
    assert (model.backend.precision, fallbacks) == ("int8", 0)
    assert "are not checked on this machine; export them anew" in caplog.text


def test_both_models_of_a_pipeline_are_checked(tiny_artifact, tiny_bert, tmp_path):
    folder = make(tiny_artifact, tmp_path / "two")
    make(tiny_artifact, tmp_path / "reranker", "score")
    shutil.move(tmp_path / "reranker/artifact", folder / "reranker")
    index = index_of(tiny_bert)
    index.save(folder / "index")
    words = ("sea", "sun", "ice", "rain", "sky")
    PassageTexts.write(folder / "passages", [f"the moon and the {word}" for word in words])
    write_pairs(folder / "pairs.json", [MeasuredPair(retriever=50, reranker=10, depth=4, measure="RR@10", quality=0.5)],
                overwrite=True)  # fmt: skip
    damage(folder / "artifact", 50)
    damage(folder / "reranker", 10)
    core = ServingCore.open(folder, Settings(latency_budget_ms=250.0))
    assert core.engine.int8_fallbacks == 2
    (answer,) = core.engine.answer([Search(query=TEXTS[0], k=4)], IDLE)
    plain = ElasticModel.from_pretrained(folder / "reranker")
    rows = index.ids.rows([hit["id"] for hit in answer.body["hits"]]).tolist()
    expected = plain.score(TEXTS[0], [PassageTexts(folder / "passages")[row] for row in rows], level=10)
    assert [hit["score"] for hit in answer.body["hits"]] == pytest.approx(expected.tolist(), abs=1e-4)
