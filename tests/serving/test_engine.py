"""From requests to answers with the real model: levels, order, batch mates, passages, search."""

import json
import shutil
import struct
from dataclasses import replace

import numpy as np
import orjson
import pytest
import torch
from archives import PASSAGES, index_of, servable

from elasticlm.backend.onnx_export import export
from elasticlm.errors import InputError
from elasticlm.machine import machine
from elasticlm.model.artifact import write_weights
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.schedule.latency import LatencyTable, Setup
from elasticlm.schedule.load import Load
from elasticlm.serving.engine import Answerer
from elasticlm.serving.requests import Classify, Embed, EmbedMany, Score, Search
from elasticlm.serving.responses import encoded
from elasticlm.serving.settings import Settings
from elasticlm.serving.stages import Stages

MEANS_MS = {100: 40.0, 50: 20.0, 10: 5.0}
IDLE, RUSH = Load(queue_depth=0), Load(queue_depth=500)
TEXTS = ["the river and the rain", "a glacier", "what is the new moon and how high is the tide in the north sea"]


def answerer(folder, **settings):
    return Answerer(folder, Settings(**{"latency_budget_ms": 250, "policy": "slack"} | settings))


@pytest.fixture(scope="module")
def query_side(tiny_artifact, tiny_bert, tmp_path_factory):
    """An archive's folder whose passages the teacher encodes, with an index."""
    folder = tmp_path_factory.mktemp("query-side")
    servable(tiny_artifact, folder / "artifact", MEANS_MS)
    index_of(tiny_bert).save(folder / "index")
    return folder


@pytest.fixture(scope="module")
def both_sides(tiny_artifact, tmp_path_factory):
    """An archive's folder whose own largest level encodes the passages."""
    folder = tmp_path_factory.mktemp("both-sides")
    servable(tiny_artifact, folder / "artifact", MEANS_MS, passages="largest")
    return folder


def with_head(tiny_artifact, folder, task, labels=None):
    """The tiny artifact as one of another task, its head random."""
    servable(tiny_artifact, folder / "artifact", MEANS_MS)
    config_file = folder / "artifact" / "config.json"
    config = json.loads(config_file.read_text()) | {"task": task, "head": {"kind": "linear", "labels": labels}}
    config_file.write_text(json.dumps(config))
    model = ElasticModel.from_pretrained(tiny_artifact)
    torch.manual_seed(1)
    head = {"head.weight": torch.randn(len(labels or "1"), 32), "head.bias": torch.randn(len(labels or "1"))}
    write_weights(folder / "artifact", model.state_dict() | head)
    return folder


def max_diff(left, right):
    left = np.stack(left) if isinstance(left, list) else left
    return (torch.as_tensor(left) - torch.as_tensor(right)).abs().max().item()


@pytest.mark.parametrize(("load", "level"), [(IDLE, 100), (Load(queue_depth=4), 50), (RUSH, 10)])
def test_the_level_follows_the_queue_and_the_vectors_are_that_levels(query_side, load, level):
    served = answerer(query_side, latency_budget_ms=400)
    answers = served.answer([Embed(text) for text in TEXTS], replace(load, batch_size=3))
    expected = served.model.embed(TEXTS, level=level)
    assert [answer.level for answer in answers] == [level] * 3
    assert [answer.body["level"] for answer in answers] == [level] * 3
    assert max_diff([answer.body["embedding"] for answer in answers], expected) < 1e-5


def test_the_age_of_one_request_lowers_the_level_of_its_batch(query_side):
    served = answerer(query_side)
    young, old = Load(ages_ms=(0.0,), budgets_ms=(250.0,)), Load(ages_ms=(220.0,), budgets_ms=(250.0,))
    assert [served.answer([Embed("ice")], load)[0].level for load in (young, old)] == [100, 50]
    hurried = Load(ages_ms=(0.0,), budgets_ms=(10.0,))
    assert served.answer([Embed("ice")], hurried)[0].level == 10


def test_a_hurried_request_does_not_lower_the_level_of_its_batch_mates(query_side):
    served = answerer(query_side, policy="deadline")
    load = Load(batch=3, batch_size=3, ages_ms=(0.0,) * 3, budgets_ms=(250.0, 20.0, 250.0), budget_ms=250.0)
    levels = [[answer.level for answer in served.answer([Embed(text) for text in TEXTS], each)]
              for each in (load, replace(load, counted_ages_ms=(0.0,) * 3))]  # fmt: skip
    assert levels == [[10] * 3, [100] * 3]


def test_requests_that_cannot_be_answered_in_time_are_refused_and_the_others_answered(query_side):
    served = answerer(query_side, policy="deadline")
    load = Load(batch=3, batch_size=3, ages_ms=(0.0, 300.0, 10.0), budgets_ms=(250.0,) * 3, budget_ms=250.0)
    answers = served.answer([Embed(text) for text in TEXTS], load)
    assert (answers[1].code, answers[1].status) == ("late", 504)
    assert "waited 300 ms" in answers[1].message
    expected = served.model.embed([TEXTS[0], TEXTS[2]], level=100)
    assert max_diff([answers[i].body["embedding"] for i in (0, 2)], expected) < 1e-5
    late = replace(load, ages_ms=(300.0,) * 3)
    assert [answer.level for answer in served.answer([Embed(text) for text in TEXTS], late)] == [10] * 3
    strict = answerer(query_side, policy="deadline", late="reject")
    assert [answer.code for answer in strict.answer([Embed(text) for text in TEXTS], late)] == ["late"] * 3


def test_passages_run_at_the_largest_level_in_any_rush_and_queries_beside_them_do_not(both_sides):
    served = answerer(both_sides)
    batch = [Embed(TEXTS[0]), Embed(TEXTS[1], "passage"), Embed(TEXTS[2]), Embed(TEXTS[0], "passage")]
    rush, idle = served.answer(batch, RUSH), served.answer(batch, IDLE)
    assert [answer.level for answer in rush] == [10, 100, 10, 100]
    alone = served.model.embed([TEXTS[1], TEXTS[0]], level=100, kind="passage")
    for answers in (rush, idle):
        assert max_diff([answers[i].body["embedding"] for i in (1, 3)], alone) < 1e-5


def test_time_for_passages_in_the_batch_is_missing_to_its_queries(both_sides):
    served = answerer(both_sides)
    load = Load(queue_depth=2, batch_size=1)  # 3 x 40 ms <= .6 x 250 ms, but not with another 40 ms
    assert served.answer([Embed(TEXTS[0])], load)[0].level == 100
    assert served.answer([Embed(TEXTS[0]), Embed(TEXTS[0], "passage")], load)[0].level == 50


def test_passages_among_the_requests_of_late_are_expected_in_the_queue(both_sides):
    served = answerer(both_sides, policy="deadline")
    load = Load(queue_depth=3, ages_ms=(0.0,), budget_ms=250.0)  # 4 x 40 ms <= .9 x 250 ms
    assert served.answer([Embed(TEXTS[0])], load)[0].level == 100
    for _ in range(40):
        served.answer([Embed(TEXTS[0], "passage")], load)
    assert served.answer([Embed(TEXTS[0])], load)[0].level < 100
    for _ in range(60):
        served.answer([Embed(TEXTS[0])], load)
    assert served.answer([Embed(TEXTS[0])], load)[0].level == 100


def test_search_finds_what_the_index_holds_in_its_own_ids(query_side):
    served = answerer(query_side)
    answers = served.answer([Search("the river and the rain", 2), Embed("ice"), Search("a wolf", 99)], IDLE)
    vector = served.model.embed(["the river and the rain"], level=100).numpy()
    scores, ids = served.index.search(vector, 2)
    assert [hit["id"] for hit in answers[0].body["hits"]] == ids[0]
    assert [hit["score"] for hit in answers[0].body["hits"]] == pytest.approx(scores[0].tolist(), abs=1e-5)
    assert sorted(hit["id"] for hit in answers[2].body["hits"]) == sorted(PASSAGES)
    assert "embedding" in answers[1].body
    assert all(orjson.loads(encoded(answer)[0])["level"] == 100 for answer in answers)


def test_several_texts_in_one_request_are_embedded_like_single_ones(query_side):
    served = answerer(query_side, latency_budget_ms=2500)
    search = Search("the river and the rain", 2)
    many, found = served.answer([EmbedMany(tuple(TEXTS)), search], IDLE)
    assert max_diff(many.body["embeddings"], served.model.embed(TEXTS, level=100)) < 1e-5
    (alone,) = served.answer([search], IDLE)
    assert [hit["id"] for hit in found.body["hits"]] == [hit["id"] for hit in alone.body["hits"]]
    body, _ = encoded(many, binary=True)
    assert len(body) == 4 * 32 * len(TEXTS)
    assert np.array(orjson.loads(encoded(many)[0])["embeddings"]).shape == (len(TEXTS), 32)
    assert answerer(query_side).answer([EmbedMany(tuple(TEXTS * 2))], IDLE)[0].level < 100  # rows weigh


def test_long_texts_say_that_they_were_cut_and_their_neighbours_do_not(query_side):
    long, short = answerer(query_side).answer([Embed("glacier " * 100), Embed("glacier")], IDLE)
    assert long.body["truncated"] is True
    assert "truncated" not in short.body
    capped = answerer(query_side, max_tokens=4).answer([Embed("ice and snow")], IDLE)
    assert capped[0].body["truncated"] is True


def test_scores_are_those_of_each_query_with_its_own_passages(tiny_artifact, tmp_path):
    served = answerer(with_head(tiny_artifact, tmp_path, "score"))
    answers = served.answer([Score(TEXTS[0], tuple(TEXTS)), Score(TEXTS[1], (TEXTS[2],))], IDLE)
    assert [len(answer.body["scores"]) for answer in answers] == [3, 1]
    for answer, query, passages in zip(answers, TEXTS[:2], (TEXTS, TEXTS[2:]), strict=True):
        expected = served.model.score(query, passages, level=answer.level)
        assert max_diff(answer.body["scores"], expected) < 1e-5


def test_a_calibrated_level_tells_probabilities_beside_its_scores(tiny_artifact, tmp_path):
    folder = with_head(tiny_artifact, tmp_path, "score")
    file = folder / "artifact/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"calibration": {"100": [2.0, -1.0]}}))
    served = answerer(folder)
    body = served.answer([Score("ice", ("snow", "rain"))], IDLE)[0].body
    expected = torch.sigmoid(2 * torch.tensor(body["scores"]) - 1)
    assert body["probabilities"] == pytest.approx(expected.tolist(), abs=1e-5)
    assert "probabilities" not in served.answer([Score("ice", ("snow",) * 20)], IDLE)[0].body  # level 10 is not


def test_a_rerank_of_many_passages_weighs_more_than_one(tiny_artifact, tmp_path):
    served = answerer(with_head(tiny_artifact, tmp_path, "score"))
    levels = [served.answer([Score("ice", ("snow",) * rows)], IDLE)[0].level for rows in (1, 5, 20)]
    assert levels == [100, 50, 10]


def test_requests_that_wait_are_expected_to_be_as_large_as_those_before(tiny_artifact, tmp_path):
    served = answerer(with_head(tiny_artifact, tmp_path, "score"))
    short, queue = Score("ice", ("snow",)), Load(queue_depth=4)
    (before,) = served.answer([short], queue)
    served.answer([Score("ice", ("snow",) * 20)], IDLE)
    (after,) = served.answer([short], queue)
    assert (before.level, after.level) == (50, 10)


def test_labels_do_not_depend_on_what_else_is_in_the_batch(tiny_artifact, tmp_path):
    served = answerer(with_head(tiny_artifact, tmp_path, "classify", ["no", "yes", "maybe"]))
    batch = [Classify(TEXTS[0]), Classify(TEXTS[1], TEXTS[2]), Classify(TEXTS[2])]
    together = served.answer(batch, IDLE)
    alone = [served.answer([one], IDLE)[0] for one in batch]
    for one, other in zip(together, alone, strict=True):
        assert one.body["label"] == other.body["label"]
        assert sum(one.body["scores"].values()) == pytest.approx(1, abs=1e-5)
        assert list(one.body["scores"].values()) == pytest.approx(list(other.body["scores"].values()), abs=1e-5)
        assert one.body["label"] == max(one.body["scores"], key=one.body["scores"].get)


def test_a_table_of_another_machine_can_be_scaled_to_this_one(query_side):
    served = answerer(query_side, profile_on_start=True)
    assert all(served.table.mean_ms(level) < 0.5 * MEANS_MS[level] for level in (100, 50))


@pytest.mark.parametrize("what", ["no table", "a table without a level", "an index of another model", "a level of NaN"])
def test_what_does_not_fit_together_does_not_start(query_side, tmp_path, what):
    folder = tmp_path / "broken"
    shutil.copytree(query_side, folder)
    if what == "no table":
        (folder / "artifact" / "latency.csv").unlink()
    elif what == "a table without a level":
        lines = (folder / "artifact" / "latency.csv").read_text().splitlines(keepends=True)
        (folder / "artifact" / "latency.csv").write_text("".join(line for line in lines if not line.startswith("50,")))
    elif what == "an index of another model":
        facts = json.loads((folder / "index" / "index.json").read_text())
        (folder / "index" / "index.json").write_text(json.dumps(facts | {"fingerprint": "0" * 64}))
    else:
        weights = ElasticModel.from_pretrained(folder / "artifact").state_dict()
        weights["encoder.embeddings.norm.bias"] *= float("nan")
        write_weights(folder / "artifact", weights)
    with pytest.raises(InputError, match=r"latency|level 50|another model|finite"):
        answerer(folder)


def test_a_table_of_another_set_up_is_a_loud_warning(query_side, tmp_path, caplog):
    folder = tmp_path / "archive"
    shutil.copytree(query_side, folder)
    file = folder / "artifact/latency.csv"
    answerer(folder)
    assert "STALE" not in caplog.text
    file.write_text("# machine: Elbrus 8C, 8 cores\n" + file.read_text())
    answerer(folder)
    assert "STALE LATENCY TABLE" in caplog.text
    assert "CPU Elbrus 8C, here" in caplog.text
    caplog.clear()
    here = machine(())
    file.write_text(file.read_text().replace("Elbrus 8C", here["cpu"]))
    answerer(folder)
    assert "STALE" not in caplog.text  # a table without that note says nothing of instruction sets
    file.write_text("# instruction sets: sse2\n" + file.read_text())
    answerer(folder)
    assert f"instruction sets sse2, here {' '.join(here['instruction_sets'])}" in caplog.text
    caplog.clear()
    answerer(folder, threads=2)
    assert "threads 1, here 2" in caplog.text


def test_a_batch_tells_what_it_would_take_at_the_largest_level(query_side):
    answers = answerer(query_side).answer([Embed(text) for text in TEXTS], replace(RUSH, batch_size=3))
    assert [answer.level for answer in answers] == [10] * 3
    assert sum(answer.largest_ms for answer in answers) == pytest.approx(3 * 40.0)


def test_every_stage_of_an_answer_is_timed(query_side):
    stages = Stages()
    answerer(query_side).answer([Search("ice", k=2)], IDLE, stages)
    assert list(stages.ms) == ["tokenize", "decide", "forward", "search", "convert"]
    assert all(ms > 0 for ms in stages.ms.values())


def test_settings_adopted_later_decide_from_then_on(query_side):
    served = answerer(query_side)
    served.adopt(Settings(latency_budget_ms=250, policy="fixed:10"))
    assert served.answer([Embed("ice")], IDLE)[0].level == 10
    with pytest.raises(InputError, match="77"):
        served.adopt(Settings(latency_budget_ms=250, policy="fixed:77"))
    assert served.answer([Embed("ice")], IDLE)[0].level == 10


def test_the_fastest_setup_that_was_measured_and_is_there_runs(query_side, tmp_path, caplog):
    folder = tmp_path / "archive"
    shutil.copytree(query_side, folder)
    artifact = folder / "artifact"
    torch_answers = answerer(folder).answer([Embed(text) for text in TEXTS], IDLE)
    LatencyTable(LatencyTable.from_means({100: 20.0, 50: 10.0, 10: 2.0}).cells, Setup(backend="onnx")).write(
        artifact / "latency.csv"
    )
    assert answerer(folder).model.backend.name == "torch"  # no graphs
    with pytest.raises(InputError, match="no ONNX graphs in fp32"):
        answerer(folder, backend="onnx")
    export(ElasticModel.from_pretrained(artifact), artifact, "fp32", TEXTS)
    served = answerer(folder)
    assert (served.model.backend.name, served.table.mean_ms(100)) == ("onnx", 20.0)
    answers = served.answer([Embed(text) for text in TEXTS], IDLE)
    for ours, theirs in zip(answers, torch_answers, strict=True):
        assert max_diff(ours.body["embedding"], theirs.body["embedding"]) < 1e-5
    assert answerer(folder, backend="torch").table.mean_ms(100) == 40.0
    assert "STALE" not in caplog.text
    answerer(folder, backend="onnx", threads=2)
    assert "threads 1, here 2" in caplog.text


def test_numbers_come_bare_or_as_json(query_side):
    answer = answerer(query_side).answer([Embed("ice")], IDLE)[0]
    body, kind = encoded(answer, binary=True)
    assert kind == "application/octet-stream"
    assert len(body) == 4 * 32
    text, kind = encoded(answer)
    assert kind == "application/json"
    assert orjson.loads(text)["embedding"] == pytest.approx(list(struct.unpack("<32f", body)))
