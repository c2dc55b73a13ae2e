import json
import subprocess
import sys

import faiss
import numpy as np
import pytest

from elasticlm.errors import InputError
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.model.teacher import load_model
from elasticlm.retrieval.passage_index import PassageIndex

IDS = [f"p{i}" for i in range(40)]


@pytest.fixture(scope="module")
def vectors():
    rows = np.random.default_rng(0).normal(size=(40, 32)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def index(vectors):
    return PassageIndex.build(vectors, IDS, fingerprint="f" * 64, corpus_sha256="c" * 64)


def test_search_is_by_inner_product_and_exact(index, vectors):
    queries = np.random.default_rng(1).normal(size=(5, 32))
    scores, ids = index.search(queries, 3)
    expected = queries.astype(np.float32) @ vectors.T
    for row, (found, hits) in enumerate(zip(scores, ids, strict=True)):
        best = np.argsort(-expected[row])[:3]
        assert hits == [IDS[i] for i in best]
        np.testing.assert_allclose(found, expected[row][best], atol=1e-5)


def test_k_is_cut_to_the_number_of_passages(index):
    scores, ids = index.search(np.ones((1, 32)), 100)
    assert scores.shape == (1, 40)
    assert sorted(ids[0]) == sorted(IDS)


def test_a_saved_index_comes_back_whole(index, vectors, tmp_path):
    index.save(tmp_path / "index")
    assert (tmp_path / "index" / "ids.txt").read_text().splitlines() == IDS
    facts = json.loads((tmp_path / "index" / "index.json").read_text())
    assert facts == {"fingerprint": "f" * 64, "dim": 32, "count": 40, "corpus_sha256": "c" * 64}
    loaded = PassageIndex.load(tmp_path / "index")
    np.testing.assert_array_equal(loaded.vectors(), vectors)
    assert (loaded.ids, loaded.dim, loaded.fingerprint) == (IDS, 32, "f" * 64)


@pytest.mark.parametrize("kind", ["Flat", "HNSW8", "IVF4,Flat"])
def test_a_memory_mapped_index_finds_the_same_without_reading_all_of_it(vectors, tmp_path, kind):
    made = PassageIndex.build(vectors, IDS, fingerprint=None, corpus_sha256=None, kind=kind)
    made.save(tmp_path / "index")
    mapped = PassageIndex.load(tmp_path / "index", memory_mapped=True)
    (scores, ids), (expected, expected_ids) = mapped.search(vectors[:5], 3), made.search(vectors[:5], 3)
    assert ids == expected_ids
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    with open("/proc/self/maps", encoding="utf-8") as maps:
        assert str(tmp_path / "index/passages.faiss") in maps.read()


@pytest.mark.parametrize("kind", ["Flat", "HNSW8", "IVF4,Flat", "SQ8", "PCA16,IVF4,Flat"])
def test_an_index_written_from_blocks_has_the_files_of_one_in_memory(vectors, tmp_path, kind):
    origin = {"fingerprint": "f" * 64, "corpus_sha256": None}
    PassageIndex.build(vectors, IDS, **origin, kind=kind).save(tmp_path / "built")
    blocks = (vectors[start : start + 16] for start in range(0, 40, 16))
    written = PassageIndex.write(tmp_path / "written", blocks, IDS, dim=32, **origin, kind=kind)
    for name in ("passages.faiss", "ids.txt", "index.json"):
        assert (tmp_path / "written" / name).read_bytes() == (tmp_path / "built" / name).read_bytes(), name
    assert written.search(vectors[:3], 2)[1] == PassageIndex.load(tmp_path / "built").search(vectors[:3], 2)[1]


def test_ids_may_have_the_line_breaks_of_windows(index, tmp_path):
    index.save(tmp_path / "index")
    (tmp_path / "index" / "ids.txt").write_bytes("\r\n".join(IDS).encode())
    assert PassageIndex.load(tmp_path / "index").ids == IDS


def test_some_vectors_and_what_is_missing(index, vectors):
    np.testing.assert_array_equal(index.vectors(index.ids.rows(["p7", "p2"])), vectors[[7, 2]])
    assert index.missing([*IDS, "other", "p40"]) == ["other", "p40"]


def test_an_existing_folder_needs_overwrite(index, tmp_path):
    index.save(tmp_path / "index")
    with pytest.raises(InputError, match="exists already"):
        index.save(tmp_path / "index")
    index.save(tmp_path / "index", overwrite=True)


@pytest.mark.parametrize("kind", ["IVF4,Flat", "HNSW8", "IDMap,Flat"])
def test_other_kinds_of_faiss_index_work(vectors, tmp_path, kind):
    made = faiss.index_factory(32, kind, faiss.METRIC_INNER_PRODUCT)
    made.train(vectors)
    if kind.startswith("IDMap"):
        made.add_with_ids(vectors, np.arange(40))
    else:
        made.add(vectors)
    faiss.write_index(made, str(tmp_path / "made.faiss"))
    (tmp_path / "made.txt").write_text("\n".join(IDS))
    index = PassageIndex.load(tmp_path / "made.faiss", tmp_path / "made.txt")
    assert index.fingerprint is None
    np.testing.assert_allclose(index.vectors(), vectors, atol=1e-6)
    assert [hits[0] for hits in index.search(vectors[:3], 2)[1]] == IDS[:3]


def made_elsewhere(made, folder, ids):
    faiss.write_index(made, str(folder / "made.faiss"))
    (folder / "made.txt").write_text("\n".join(ids))
    return PassageIndex.load(folder / "made.faiss", folder / "made.txt")


@pytest.mark.parametrize("kind", ["IDMap,Flat", "IDMap2,Flat", "IDMap,HNSW8", "IVF4,Flat", "PCA32,IVF4,Flat"])
@pytest.mark.parametrize("metric", [faiss.METRIC_INNER_PRODUCT, faiss.METRIC_L2])
def test_an_index_with_numbers_of_its_own_finds_their_ids(vectors, tmp_path, kind, metric):
    made = faiss.index_factory(32, kind, metric)
    made.train(vectors)
    numbers = np.random.default_rng(2).permutation(40)
    made.add_with_ids(vectors, numbers)
    index = made_elsewhere(made, tmp_path, IDS)
    assert [hits[0] for hits in index.search(vectors[:5], 2)[1]] == [IDS[number] for number in numbers[:5]]


def test_numbers_may_leave_lines_of_the_ids_out(vectors, tmp_path):
    made = faiss.index_factory(32, "IDMap,Flat", faiss.METRIC_INNER_PRODUCT)
    made.add_with_ids(vectors[:3], np.array([30, 7, 12]))
    index = made_elsewhere(made, tmp_path, IDS)
    assert index.ids == ["p30", "p7", "p12"]
    np.testing.assert_array_equal(index.vectors(), vectors[:3])


@pytest.mark.parametrize("kind", ["IDMap,Flat", "IVF4,Flat"])
@pytest.mark.parametrize(
    ("numbers", "message"),
    [(np.arange(1000, 1040), "such as 1000 of 40 lines"), (np.arange(-1, 39), "such as -1 of 40 lines"),
     (np.arange(40) // 2, "two of its vectors have the same number")],
)  # fmt: skip
def test_numbers_without_an_id_are_refused(vectors, tmp_path, kind, numbers, message):
    made = faiss.index_factory(32, kind, faiss.METRIC_INNER_PRODUCT)
    made.train(vectors)
    made.add_with_ids(vectors, numbers)
    with pytest.raises(InputError, match=message):
        made_elsewhere(made, tmp_path, IDS)


@pytest.mark.parametrize("kind", ["Flat", "IVF4,Flat", "HNSW8", "IDMap,Flat", "SQ8"])
def test_distances_between_vectors_of_length_1_rank_like_the_inner_product(vectors, index, tmp_path, kind):
    made = faiss.index_factory(32, kind, faiss.METRIC_L2)
    made.train(vectors)
    add = made.add if not kind.startswith("IDMap") else lambda rows: made.add_with_ids(rows, np.arange(40))
    add(vectors)
    queries = 3 * vectors[:4]
    found, expected = made_elsewhere(made, tmp_path, IDS).search(queries, 1), index.search(queries, 1)
    assert found[1] == expected[1]
    np.testing.assert_allclose(found[0], expected[0], atol=0.05 if kind == "SQ8" else 1e-5)


def test_distances_between_other_vectors_are_refused(vectors, tmp_path):
    made = faiss.IndexFlatL2(32)
    made.add(2 * vectors)
    with pytest.raises(InputError, match="do not have length 1"):
        made_elsewhere(made, tmp_path, IDS)


def test_an_index_of_another_model_is_refused(index, vectors, tiny_artifact):
    model = ElasticModel.from_pretrained(tiny_artifact)
    with pytest.raises(InputError, match=r"another model.*elasticlm index"):
        index.check(model)
    PassageIndex.build(vectors, IDS, fingerprint=None, corpus_sha256=None).check(model)
    fingerprint = model.config.passages.fingerprint
    PassageIndex.build(vectors, IDS, fingerprint=fingerprint, corpus_sha256=None).check(model)
    narrow = PassageIndex.build(vectors[:, :16], IDS, fingerprint=fingerprint, corpus_sha256=None)
    with pytest.raises(InputError, match=r"dim 16, the model's 32"):
        narrow.check(model)


def test_an_index_made_elsewhere_is_checked_on_a_sample(tiny_bert):
    teacher = load_model(str(tiny_bert))
    passages = {f"p{i}": f"the {word} melts in the cave" for i, word in enumerate(["ice", "snow", "gold", "rain"] * 10)}
    vectors = teacher.embed(list(passages.values()), kind="passage").numpy()
    asked = []

    def embed(texts):
        asked.extend(texts)
        return teacher.embed(texts, kind="passage").numpy()

    index = PassageIndex.build(vectors, IDS, fingerprint=None, corpus_sha256=None, kind="SQ8")
    assert index.check_sample(passages, embed) > 0.99
    assert len(asked) == 16
    foreign = PassageIndex.build(vectors[:, ::-1].copy(), IDS, fingerprint=None, corpus_sha256=None)
    with pytest.raises(InputError, match=r"mean cosine of -?0\.\d+ with it, expected at least 0\.95"):
        foreign.check_sample(passages, embed)
    with pytest.raises(InputError, match="none of its passage ids"):
        index.check_sample({"other": "ice"}, embed)


def test_broken_folders_are_refused(index, tmp_path):
    index.save(tmp_path / "index")
    faiss_file, ids_file = tmp_path / "index" / "passages.faiss", tmp_path / "index" / "ids.txt"
    whole = faiss_file.read_bytes()
    faiss_file.write_bytes(whole[:-100])
    with pytest.raises(InputError, match=r"passages\.faiss: not a FAISS index, or cut off") as error:
        PassageIndex.load(tmp_path / "index")
    assert "\n" not in str(error.value)
    faiss_file.write_bytes(whole)
    ids_file.write_text("\n".join(IDS[:-1]))
    with pytest.raises(InputError, match="40 vectors, but 39 ids"):
        PassageIndex.load(tmp_path / "index")
    ids_file.write_text("\n".join([*IDS[:-1], "p3"]))
    with pytest.raises(InputError, match="duplicate id 'p3'"):
        PassageIndex.load(tmp_path / "index")
    ids_file.unlink()
    with pytest.raises(InputError, match=r"no such file .*ids\.txt"):
        PassageIndex.load(tmp_path / "index")


def test_what_is_no_index_is_refused(vectors, tmp_path):
    with pytest.raises(InputError, match="no such file"):
        PassageIndex.load(tmp_path / "nowhere")
    distance = faiss.IndexFlatL2(32)
    distance.add(vectors)
    faiss.write_index(distance, str(tmp_path / "l2.faiss"))
    with pytest.raises(InputError, match="--ids"):
        PassageIndex.load(tmp_path / "l2.faiss")
    (tmp_path / "ids.txt").write_text("\n".join(IDS))
    other = faiss.IndexFlat(32, faiss.METRIC_L1)
    other.add(vectors)
    faiss.write_index(other, str(tmp_path / "l1.faiss"))
    with pytest.raises(InputError, match="neither the inner product nor L2"):
        PassageIndex.load(tmp_path / "l1.faiss", tmp_path / "ids.txt")
    with pytest.raises(InputError, match="'Flatt'"):
        PassageIndex.build(vectors, IDS, fingerprint=None, corpus_sha256=None, kind="Flatt")


def test_a_server_can_load_it_without_the_data_libraries():
    code = (
        "import sys; import elasticlm.retrieval.passage_index; "
        "print(sorted({'torch', 'transformers', 'datasets', 'ir_measures', 'pandas'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
