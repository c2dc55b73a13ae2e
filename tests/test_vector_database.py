"""docs/examples/qdrant_search.py: query vectors of every level in a collection that the teacher filled."""

import json
import sys
from pathlib import Path

import faiss
import numpy as np
import pytest
from archives import archive, servable
from qdrant_client import QdrantClient
from random_texts import make_texts

from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.teacher import load_model
from elasticlm.retrieval.passage_index import PassageIndex

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "docs/examples"), str(ROOT / "tests/end_to_end")]
import qdrant_search  # noqa: E402
from plain_server import PlainServer  # noqa: E402

PASSAGES = {f"doc {i}": text for i, text in enumerate(make_texts(300, seed=0))}
QUERIES = make_texts(20, seed=1)


@pytest.fixture(scope="module")
def client(tiny_bert):
    """An embedded Qdrant with a collection of 300 passages, embedded by the teacher."""
    client = QdrantClient(":memory:")
    qdrant_search.fill(client, "articles", str(tiny_bert), PASSAGES)
    return client


@pytest.fixture(scope="module")
def model(tiny_artifact):
    return ElasticModel.from_pretrained(tiny_artifact)


@pytest.fixture(scope="module")
def teachers(tiny_bert):
    """FAISS's hits of the teacher alone: scores [queries, 5] and ids."""
    teacher = load_model(str(tiny_bert))
    index = faiss.IndexFlatIP(teacher.config.vector_size)
    index.add(teacher.embed(list(PASSAGES.values()), kind="passage").numpy())
    scores, rows = index.search(teacher.embed(QUERIES).numpy(), 5)
    return scores, [[list(PASSAGES)[row] for row in found] for found in rows]


def test_the_largest_level_finds_what_faiss_finds_with_the_teacher(client, model, teachers):
    scores, ids = teachers
    found = [qdrant_search.search(client, "articles", model, query, k=5) for query in QUERIES]
    assert [[pid for pid, _ in hits] for hits in found] == ids
    max_diff = np.abs(np.array([[score for _, score in hits] for hits in found]) - scores).max()
    assert max_diff < 1e-5, max_diff


def test_every_level_searches_the_same_collection(client, model):
    found = {
        level: [qdrant_search.search(client, "articles", model, query, level, k=5) for query in QUERIES]
        for level in model.levels
    }
    assert list(found) == [100, 50, 10]
    assert all(len(hits) == 5 for several in found.values() for hits in several)
    best = {level: [hits[0] for hits in several] for level, several in found.items()}
    assert best[100] != best[50] != best[10], "levels have vectors of their own"


def test_an_exported_collection_is_the_index_that_the_teacher_makes(client, tiny_bert, tmp_path, monkeypatch):
    monkeypatch.setattr(qdrant_search, "AT_ONCE", 70)
    qdrant_search.export(client, "articles", tmp_path / "collection")
    index = PassageIndex.load(tmp_path / "collection/passages.faiss", tmp_path / "collection/ids.txt")
    assert list(index.ids) == list(PASSAGES)
    vectors = load_model(str(tiny_bert)).embed(list(PASSAGES.values()), kind="passage").numpy()
    max_diff = np.abs(index.vectors() - vectors).max()
    assert max_diff < 1e-6, max_diff
    corpus = [json.loads(line) for line in (tmp_path / "collection/corpus.jsonl").read_text().splitlines()]
    assert {passage["_id"]: passage["text"] for passage in corpus} == PASSAGES


def test_the_command_exports_and_searches(tiny_bert, tiny_artifact, tmp_path, monkeypatch, capsys):
    stored = QdrantClient(path=str(tmp_path / "qdrant"))
    qdrant_search.fill(stored, "articles", str(tiny_bert), PASSAGES)
    stored.close()
    common = ["--qdrant", str(tmp_path / "qdrant"), "--collection", "articles"]
    for words in (["export", "--output", str(tmp_path / "collection")],
                  ["search", "--model", str(tiny_artifact), "--level", "50", QUERIES[0]]):  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["qdrant_search.py", words[0], *common, *words[1:]])
        qdrant_search.main()
    assert (tmp_path / "collection/ids.txt").read_text().splitlines() == list(PASSAGES)
    assert capsys.readouterr().out.count("'doc ") == 10


def test_the_vector_of_a_server_finds_what_its_level_finds(client, model, tiny_artifact, tmp_path):
    artifact = servable(tiny_artifact, tmp_path / "artifact", {100: 3.0, 50: 2.0, 10: 1.0})
    packed = archive("search", artifact, tmp_path, policy="fixed:50", backend="torch")
    server = PlainServer(packed, tmp_path / "unpacked")
    try:
        url = f"http://127.0.0.1:{server.server_port}/predictions/search"
        vector, level = qdrant_search.served_vector(url, QUERIES[0])
    finally:
        server.shutdown()
        server.server_close()
    assert level == "50"
    expected = qdrant_search.search(client, "articles", model, QUERIES[0], 50)
    assert qdrant_search.hits(client, "articles", vector) == [(pid, pytest.approx(s, abs=1e-5)) for pid, s in expected]
