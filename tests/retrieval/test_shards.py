"""An index in shards: searched, read and saved like one index of the same passages."""

import json
import shutil
from itertools import pairwise

import faiss
import numpy as np
import pytest

from elasticlm.errors import InputError
from elasticlm.files import publish_folder
from elasticlm.retrieval.index_folder import shard_name, write_shard_counts
from elasticlm.retrieval.passage_index import PassageIndex

BOUNDS = (0, 17, 37, 60)  # rows at which shards begin and the last one ends
IDS = [f"p{i}" for i in range(60)]
ORIGIN = {"fingerprint": "f" * 64, "corpus_sha256": "c" * 64}
ABOVE = (*(stop - start for start, stop in pairwise(BOUNDS)),)


@pytest.fixture(scope="module")
def vectors():
    """Sixty vectors of length 1; rows 20, 40 and 41 are those of row 3."""
    rows = np.random.default_rng(0).normal(size=(60, 32)).astype(np.float32)
    rows[[20, 40, 41]] = rows[3]
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def write_shards(folder, vectors, kind="Flat"):
    for number, (start, stop) in enumerate(pairwise(BOUNDS)):
        PassageIndex.build(vectors[start:stop], IDS[start:stop], **ORIGIN, kind=kind).save(folder / shard_name(number))
    write_shard_counts(folder, ABOVE, 32, **ORIGIN)
    return folder


@pytest.fixture
def folder(vectors, tmp_path):
    return write_shards(tmp_path / "index", vectors)


@pytest.fixture
def one(vectors):
    return PassageIndex.build(vectors, IDS, **ORIGIN)


@pytest.mark.parametrize("memory_mapped", [False, True])
@pytest.mark.parametrize("queries", [1, 5, 30])
@pytest.mark.parametrize("k", [1, 4, 18, 60, 100])
def test_shards_are_searched_like_one_index(folder, one, memory_mapped, queries, k):
    index = PassageIndex.load(folder, memory_mapped=memory_mapped)
    asked = np.random.default_rng(1).normal(size=(queries, 32))
    (scores, ids), (expected, expected_ids) = index.search(asked, k), one.search(asked, k)
    max_diff = np.abs(scores - expected).max()
    assert scores.shape == expected.shape
    assert max_diff < 1e-6, max_diff
    assert ids == expected_ids


def test_passages_of_one_score_come_in_the_order_of_their_rows(folder, one, vectors):
    for index in (one, PassageIndex.load(folder)):
        scores, (ids,) = index.search(vectors[3:4], 4)
        assert ids == ["p3", "p20", "p40", "p41"]
        assert np.ptp(scores) == 0


def test_vectors_ids_and_facts_are_those_of_one_index(folder, vectors):
    index = PassageIndex.load(folder, memory_mapped=True)
    np.testing.assert_array_equal(index.vectors(), vectors)
    rows = np.array([59, 3, 17, 3, 36, 37])
    np.testing.assert_array_equal(index.vectors(rows), vectors[rows])
    assert (index.ids, len(index), index.dim) == (IDS, 60, 32)
    assert (index.fingerprint, index.corpus_sha256) == tuple(ORIGIN.values())
    assert index.missing(["p59", "other"]) == ["other"]


@pytest.mark.parametrize("kind", ["IVF4,Flat", "HNSW8", "SQ8", "PCA16,IVF4,Flat"])
def test_shards_of_other_kinds_find_and_return_their_vectors(vectors, tmp_path, kind):
    index = PassageIndex.load(write_shards(tmp_path / "index", vectors, kind), memory_mapped=True)
    found = index.vectors(np.arange(60)) @ vectors.T  # PCA returns an approximation
    assert (np.abs(found.argmax(1) - np.arange(60)) * ~np.isin(np.arange(60), [3, 20, 40, 41])).max() == 0
    assert [hits[0] for hits in index.search(vectors[[0, 18, 59]], 2)[1]] == ["p0", "p18", "p59"]


def test_distances_and_numbers_of_shards_made_elsewhere_are_understood(folder, vectors, one):
    for number, (start, stop) in enumerate(pairwise(BOUNDS)):
        made = faiss.index_factory(32, "IDMap,Flat", faiss.METRIC_L2)
        made.add_with_ids(vectors[start:stop], np.arange(stop - start))
        faiss.write_index(made, str(folder / shard_name(number) / "passages.faiss"))
    queries = 2 * vectors[:5]
    found, expected = PassageIndex.load(folder).search(queries, 6), one.search(queries, 6)
    assert found[1] == expected[1]
    np.testing.assert_allclose(found[0], expected[0], atol=1e-5)


def test_a_saved_copy_has_the_same_files_and_the_fingerprint_that_was_agreed_on(folder, tmp_path):
    index = PassageIndex.load(folder)
    index.save(tmp_path / "copy")
    files = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    copied = {str(file.relative_to(tmp_path / "copy")): file.read_bytes() for file in (tmp_path / "copy").rglob("*.*")}
    assert copied == files
    assert len(files) == 10
    index.fingerprint = "e" * 64
    index.save(tmp_path / "copy", overwrite=True)
    assert PassageIndex.load(tmp_path / "copy").fingerprint == "e" * 64


def change(file, **facts):
    file.write_text(json.dumps(json.loads(file.read_text()) | facts))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: shutil.rmtree(folder / "shard-00001"), "lists 3 shards, but shard-00001 is missing"),
        (lambda folder: change(folder / "index.json", shards=[17, 19, 24]), "shard-00001 does not.*count is 20"),
        (lambda folder: change(folder / "index.json", count=61), "says count 61, its shards have 60"),
        (lambda folder: change(folder / "index.json", dim=31), "shard-00000 does not.*dim is 32, expected 31"),
        (lambda folder: change(folder / "index.json", shards=[]), "expected shards to be a list"),
        (lambda folder: change(folder / "index.json", shards=["a"]), "expected shards to be a list"),
        (lambda folder: change(folder / "shard-00002/index.json", fingerprint="e" * 64), "shard-00002.*fingerprint"),
        (lambda folder: change(folder / "shard-00002/index.json", corpus_sha256="e"), "shard-00002.*corpus_sha256"),
        (lambda folder: change(folder / "shard-00002/index.json", count=5), "says count 5, passages.faiss has 23"),
        (
            lambda folder: (folder / "shard-00001/passages.faiss").unlink(),
            r"no such file .*shard-00001/passages\.faiss",
        ),
        (lambda folder: (folder / "shard-00001/passages.faiss").write_bytes(b"IxFI"), "cut off"),
        (lambda folder: (folder / "shard-00001/ids.txt").write_text("p1\n"), "20 vectors, but 1 ids"),
        (
            lambda folder: (folder / "shard-00001/ids.txt").write_text("\n".join([*IDS[18:37], "p3"])),
            "duplicate id 'p3'",
        ),
    ],
)
def test_missing_and_broken_shards_are_refused(folder, spoil, message):
    spoil(folder)
    with pytest.raises(InputError, match=message):
        PassageIndex.load(folder)


def test_shards_of_two_metrics_are_refused(folder, vectors):
    made = faiss.IndexFlatL2(32)
    made.add(vectors[:17])
    faiss.write_index(made, str(folder / "shard-00000/passages.faiss"))
    with pytest.raises(InputError, match=r"shard-00001 does not belong to this index: its metric"):
        PassageIndex.load(folder)


def test_a_folder_of_shards_is_published_whole_and_replaces_another_only_on_request(folder, tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old/file").write_text("")
    with pytest.raises(InputError, match="exists already"):
        publish_folder(folder, tmp_path / "old")
    assert PassageIndex.load(folder).ids == IDS
    publish_folder(folder, tmp_path / "old", overwrite=True)
    assert PassageIndex.load(tmp_path / "old").ids == IDS
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
