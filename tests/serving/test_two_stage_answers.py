"""A two-stage archive: packed, opened, asked; the pair follows the load, hits are the reranker's."""

import json
import math
import zipfile

import numpy as np
import pytest
import yaml
from archives import PASSAGES, corpus_of_passages, index_of, pipeline

from elasticlm.backend import SPLIT_FROM
from elasticlm.errors import InputError
from elasticlm.handlers.archive import main
from elasticlm.model.configuration import Fusion
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.structure import Pair, level_name
from elasticlm.retrieval.passage_index import PassageIndex
from elasticlm.retrieval.passage_texts import PassageTexts
from elasticlm.schedule.cascade import read_pairs
from elasticlm.schedule.latency import LatencyTable, Setup
from elasticlm.schedule.load import Load
from elasticlm.serving.cascade_times import pair_table, tokens_of_lists
from elasticlm.serving.engine import Answerer
from elasticlm.serving.requests import Classify, Embed, RequestError, Score, Search, refuse_unserved
from elasticlm.serving.settings import Settings
from elasticlm.serving.stages import Stages
from elasticlm.serving.two_stage import TwoStageAnswerer, open_archive

RETRIEVER_MS, RERANKER_MS = {100: 8.0, 50: 4.0, 10: 1.0}, {100: 10.0, 50: 5.0, 10: 1.0}
PAIRS = [
    (10, None, 4, 0.2),  # 1 ms
    (100, None, 4, 0.4),  # 8
    (10, 10, 4, 0.5),  # 5
    (50, 10, 4, 0.45),  # 8: beaten by 10+10, as is 100 alone
    (100, 50, 4, 0.6),  # 28
    (100, 100, 4, 0.7),  # 48
]
QUERY = "the river and the snow"
IDLE, RUSH = Load(), Load(queue_depth=500)


@pytest.fixture(scope="module")
def parts(tiny_artifact, tiny_bert, tmp_path_factory):
    """Folder with retriever/, reranker/, index/, corpus/ and pairs.json; options of elasticlm archive naming them."""
    folder = tmp_path_factory.mktemp("parts")
    index, data = index_of(tiny_bert), corpus_of_passages(folder / "corpus")
    return folder, pipeline(tiny_artifact, index, data, folder, RETRIEVER_MS, RERANKER_MS, PAIRS)


def packed(options, folder, *more):
    main([*options, "--name", "two", "--output", str(folder), *more])
    with zipfile.ZipFile(folder / "two.mar") as archive:
        archive.extractall(folder / "two")
    return folder / "two"


@pytest.fixture(scope="module")
def archive(parts, tmp_path_factory):
    """The unpacked archive."""
    return packed(parts[1], tmp_path_factory.mktemp("packed"))


@pytest.fixture(scope="module")
def answerer(archive):
    return open_archive(archive, Settings(latency_budget_ms=100, alpha=1, overhead_ms=0))


@pytest.fixture(scope="module")
def models(parts):
    folder, _ = parts
    return ElasticModel.from_pretrained(folder / "retriever"), ElasticModel.from_pretrained(folder / "reranker")


def top(answerer, retriever, query, level, count=4):
    """The retriever's best, with their scores."""
    scores, ids = answerer.index.search(retriever.embed([query], level=level).numpy(), count)
    return dict(zip(ids[0], scores[0].tolist(), strict=True))


def ids_of(answer):
    return [hit["id"] for hit in answer.body["hits"]]


def scores_of(answer):
    return [hit["score"] for hit in answer.body["hits"]]


def test_the_archive_holds_both_models_the_passages_and_the_pairs_worth_running(archive, parts):
    assert [level_name(pair.levels) for pair in read_pairs(archive / "pairs.json")] == [
        "100+100",
        "100+50",
        "10+10",
        "10",
    ]
    texts = PassageTexts(archive / "passages")
    assert [texts[row] for row in range(len(texts))] == list(PASSAGES.values())  # the index's order, not the corpus's
    for part in ("artifact", "reranker"):
        assert {"model.safetensors", "latency.csv"} <= {file.name for file in (archive / part).iterdir()}
    handler = yaml.safe_load((archive / "model-config.yaml").read_text())["handler"]
    assert (handler["policy"], handler["latency_budget_ms"]) == ("deadline", 250)  # 5 x (8 + 4 x 10 + search), up
    assert handler["max_k"] == 4


def test_an_idle_server_reranks_the_retrievers_best_by_the_best_pair(answerer, models):
    retriever, reranker = models
    (answer,) = answerer.answer([Search(QUERY, 3)], IDLE)
    assert answer.level == Pair(100, 100)
    assert answer.body["levels"] == {"retriever": 100, "reranker": 100}
    found = list(top(answerer, retriever, QUERY, 100))
    scores = dict(zip(found, reranker.score(QUERY, [PASSAGES[pid] for pid in found], level=100).tolist(), strict=True))
    assert ids_of(answer) == sorted(found, key=scores.get, reverse=True)[:3]
    assert scores_of(answer) == pytest.approx(sorted(scores.values(), reverse=True)[:3], abs=1e-5)


@pytest.mark.parametrize(("depth", "levels"), [(0, "100+100"), (2, "100+50"), (5, "10+10"), (500, "10")])
def test_the_pair_follows_the_queue(answerer, depth, levels):
    (answer,) = answerer.answer([Search(QUERY, 4)], Load(queue_depth=depth))
    assert level_name(answer.level) == levels
    assert answer.largest_ms == pytest.approx(48, abs=1)


def test_in_the_worst_rush_the_hits_are_the_retrievers_own(answerer, models):
    (answer,) = answerer.answer([Search(QUERY, 4)], RUSH)
    expected = top(answerer, models[0], QUERY, 10)
    assert answer.body["levels"] == {"retriever": 10, "reranker": None}
    assert ids_of(answer) == list(expected)
    assert scores_of(answer) == pytest.approx(list(expected.values()), abs=1e-5)


def test_each_request_of_a_batch_gets_what_it_gets_alone(archive):
    answerer = TwoStageAnswerer(archive, Settings(policy="fixed:100+50"))
    batch = [Search(QUERY, 4), Search("a wolf", 1), Search("what is the moon " * 30, 2)]
    together = answerer.answer(batch, IDLE)
    for one, request in zip(together, batch, strict=True):
        (alone,) = answerer.answer([request], IDLE)
        assert ids_of(one) == ids_of(alone)
        assert len(ids_of(one)) == request.k
        assert scores_of(one) == pytest.approx(scores_of(alone), abs=1e-5)
    assert ["truncated" in one.body for one in together] == [False, False, True]
    assert answerer.answer([], IDLE) == []


def test_scores_are_fused_with_the_retrievers_where_the_reranker_says_so(parts, models, tmp_path):
    retriever, reranker = models
    reranker.config.fusion = Fusion({"100": 50.0})
    reranker.save_pretrained(tmp_path / "fused")
    LatencyTable.from_means(RERANKER_MS).write(tmp_path / "fused/latency.csv")
    archive = packed(parts[1], tmp_path, "--reranker", str(tmp_path / "fused"))
    answerer = TwoStageAnswerer(archive, Settings(policy="fixed:100+100"))
    (answer,) = answerer.answer([Search(QUERY, 4)], IDLE)
    first = top(answerer, retriever, QUERY, 100)
    raw = reranker.score(QUERY, [PASSAGES[pid] for pid in first], level=100).numpy()
    own = np.array(list(first.values()))
    both = raw + 50 * (own - own.min()) / np.ptp(own)
    expected = dict(zip(first, both.tolist(), strict=True))
    assert ids_of(answer) == sorted(first, key=expected.get, reverse=True)
    assert scores_of(answer) == pytest.approx([expected[pid] for pid in ids_of(answer)], abs=1e-3)


def test_pairs_can_be_held_fixed_and_changed_while_serving(archive):
    answerer = TwoStageAnswerer(archive, Settings(policy="fixed:10+10"))
    assert answerer.answer([Search(QUERY, 1)], IDLE)[0].level == Pair(10, 10)
    answerer.adopt(Settings(policy="fixed:10"))
    assert answerer.answer([Search(QUERY, 1)], IDLE)[0].level == 10
    with pytest.raises(InputError, match=r"level 50\+10 is not among the levels 100\+100, 100\+50, 10\+10, 10"):
        answerer.adopt(Settings(policy="fixed:50+10"))


def test_both_models_runs_count_as_forward(answerer):
    stages = Stages()
    answerer.answer([Search(QUERY, 1)], IDLE, stages)
    assert list(stages.ms) == ["tokenize", "decide", "forward", "search", "convert"]


def test_it_answers_searches_and_says_so(answerer, parts):
    refuse_unserved(Search(QUERY, 1), answerer.service, Settings(latency_budget_ms=250))
    for request in (Embed("ice"), Score("ice", ("a",)), Classify("ice")):
        with pytest.raises(RequestError, match=r"'search': it answers \{query, k\}"):
            refuse_unserved(request, answerer.service, Settings(latency_budget_ms=250))


def test_a_policy_of_pairs_is_refused_by_an_archive_of_one_model(parts, tmp_path):
    main([*parts[1][:2], "--name", "one", "--output", str(tmp_path)])
    with zipfile.ZipFile(tmp_path / "one.mar") as archive:
        archive.extractall(tmp_path / "one")
    assert type(open_archive(tmp_path / "one", Settings(policy="slack:t=10"))) is Answerer
    with pytest.raises(InputError, match=r"level 50\+10 is not among"):
        open_archive(tmp_path / "one", Settings(policy="fixed:50+10"))


def test_lists_are_taken_to_be_as_long_as_their_longest_passage(models, parts):
    retriever, reranker = models
    words = ["ice", "the river and the rain", "a wolf in the snow and the wind", "moon " * 100]
    vectors = retriever.embed(words, level=retriever.structures.smallest).numpy()
    index = PassageIndex.build(vectors, [*"abcd"], fingerprint=None, corpus_sha256=None)
    longest = reranker.tokenize_pairs(words, None)["attention_mask"].sum(1).tolist()
    found = tokens_of_lists(retriever, reranker, index, words, 4, backend="torch")
    assert found == longest[3]  # every list holds all of them
    mean = math.ceil(np.mean(longest))
    assert tokens_of_lists(retriever, reranker, index, words, 1, backend="torch") == mean  # each finds itself
    assert longest[3] == SPLIT_FROM
    assert tokens_of_lists(retriever, reranker, index, words, 4, backend="onnx") == mean  # run without padding
    times, pairs = LatencyTable.from_means(RERANKER_MS), read_pairs(parts[0] / "pairs.json")
    table = pair_table(pairs, (retriever, times), (reranker, times), index, words, backend="torch")
    assert table.passage_tokens == longest[3] - 1  # [CLS] is the query's
    assert table.max_tokens == reranker.config.max_tokens.pair
    assert 0 < table.search_ms < 100


def write_pairs_file(folder, **changed):
    pair = {"retriever": 100, "reranker": 100, "depth": 4, "quality": 0.5, "measure": "RR@10"} | changed
    (folder / "pairs.json").write_text(json.dumps([pair]))
    return ["--pairs", str(folder / "pairs.json")]


def few_passages(folder):
    (folder / "corpus").mkdir()
    (folder / "corpus/corpus.jsonl").write_text(json.dumps({"_id": "p4", "title": "", "text": "ice"}) + "\n")
    return ["--data", f"beir:{folder / 'corpus'}"]


def without_a_table(folder):
    ElasticModel.from_pretrained(folder.parent / "reranker").save_pretrained(folder / "reranker")
    return ["--reranker", str(folder / "reranker")]


def measured_with_two_threads(folder):
    options = without_a_table(folder)
    LatencyTable(LatencyTable.from_means(RERANKER_MS).cells, Setup(threads=2)).write(folder / "reranker/latency.csv")
    return options


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda folder: write_pairs_file(folder, reranker=30), "the reranker has no level 30, only 100, 50, 10"),
        (lambda folder: write_pairs_file(folder, retriever=7), "the retriever has no level 7, only 100, 50, 10"),
        (lambda folder: write_pairs_file(folder, depth=0), "pairs.json: .*depth 0"),
        (lambda folder: ["--pairs", "nowhere"], "nowhere: no such file"),
        (few_passages, "4 of the index's 5 passages are not in it, such as 'p/1'"),
        (without_a_table, r"reranker/latency.csv: no latency table"),
        (measured_with_two_threads, "nothing was measured for torch fp32 1 threads"),
        (lambda folder: ["--reranker", str(folder.parent / "retriever")], "'embed', not ranking"),
        (lambda folder: ["--index", ""], "needs all of --reranker, --pairs, --index and --data"),
        (lambda folder: ["--reranker", ""], "needs all of --reranker, --pairs, --index and --data"),
        (lambda folder: ["--data", ""], "needs all of --reranker, --pairs, --index and --data"),
        (lambda folder: ["--policy", "fixed:50+10"], r"level 50\+10 is not among the levels 100\+100, 100\+50"),
    ],
)
def test_what_does_not_fit_together_is_refused_when_it_is_packed(parts, tmp_path_factory, change, says):
    folder, options = parts
    made = folder / tmp_path_factory.mktemp("change").name
    made.mkdir()
    with pytest.raises(InputError, match=says):
        main([*options, "--name", "two", "--output", str(made / "store"), *change(made)])
    assert not (made / "store").exists()


def test_texts_come_back_as_they_were(tmp_path):
    passages = ["two\nlines\n", "", "Füße 🧊", "x"]
    PassageTexts.write(tmp_path / "passages", passages)
    texts = PassageTexts(tmp_path / "passages")
    assert [texts[row] for row in range(len(texts))] == passages
