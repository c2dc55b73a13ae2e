import json
import os

import pytest
from sets import PASSAGES, QRELS, QUERIES, write_beir

from elasticlm.errors import InputError
from elasticlm.retrieval.data_specs import load_corpus, load_queries, load_retrieval, load_texts, split_sha256


def test_a_split_holds_the_whole_corpus_and_only_its_own_queries(beir_folder):
    data = load_retrieval(f"beir:{beir_folder}", "test")
    assert data.passage_ids == [pid for pid, _, _ in PASSAGES]
    assert data.query_ids == ["q1", "q2", "q3", "q4", "q5"]
    assert data.queries == [QUERIES[qid] for qid in data.query_ids]
    assert data.qrels["q1"] == {"p2": 2, "p1": 1}
    assert data.candidates is None


def test_the_default_split_is_test(beir_folder):
    assert load_retrieval(f"beir:{beir_folder}").split == "test"


def test_a_passage_is_its_title_and_text_stripped(beir_folder):
    corpus = load_corpus(f"beir:{beir_folder}")
    assert corpus.passages[0] == "glacier the glacier melts slow in the warm sun"
    assert corpus.passages[2] == "rain and snow fall on the mountain"
    assert load_texts(f"beir:{beir_folder}") == corpus.passages


def test_queries_for_training_are_never_another_splits(beir_folder):
    assert load_queries(f"beir:{beir_folder}", "train") == (["q6", "q7"], [QUERIES["q6"], QUERIES["q7"]])


def test_candidates_are_read_with_their_labels(tmp_path):
    data = load_retrieval(f"beir:{write_beir(tmp_path / 'set', candidates=True)}", "test")
    assert data.candidates == {"q1": {"p1": 0, "p2": 1, "p4": 0}, "q2": {"p5": 1, "p4": 0}, "q3": {"p6": 1}}


def test_a_changed_file_is_read_anew(beir_folder):
    before = load_corpus(f"beir:{beir_folder}")
    corpus = beir_folder / "corpus.jsonl"
    stat = corpus.stat()
    corpus.write_text(corpus.read_text().replace("warm sun", "cold sun"))
    os.utime(corpus, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    after = load_corpus(f"beir:{beir_folder}")
    assert "cold sun" in after.passages[0]
    assert before.sha256 != after.sha256


def test_ids_that_are_numbers_and_foreign_fields_are_taken(beir_folder):
    rows = [{"_id": 7, "text": "a cave"}, {"_id": "MED-1", "text": "2011-01-01", "metadata": {"year": 2011}}]
    (beir_folder / "corpus.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
    assert load_corpus(f"beir:{beir_folder}").ids == ["7", "MED-1"]


def test_the_splits_hash_tells_judgements_apart_and_not_their_order():
    qrels = {"a": {"x": 1, "y": 0}, "b": {"z": 1}}
    same = {"b": {"z": 1}, "a": {"y": 0, "x": 1}}
    assert split_sha256(["a", "b"], qrels) == split_sha256(["b", "a"], same)
    assert split_sha256(["a", "b"], qrels) != split_sha256(["a", "b"], qrels | {"b": {"z": 2}})


@pytest.mark.parametrize(
    ("file", "line", "text", "says"),
    [
        ("qrels/test.tsv", 3, "q1\tp1", ["test.tsv, line 3", "query-id, corpus-id, score"]),
        ("qrels/test.tsv", 3, "q1\tp1\thigh", ["test.tsv, line 3", "'high'", "whole number"]),
        ("qrels/test.tsv", 3, "q1\tp1\tnan", ["test.tsv, line 3", "'nan'"]),
        ("qrels/test.tsv", 3, "q1\tp2\t1", ["test.tsv, line 3", "'p2'", "otherwise"]),
        ("corpus.jsonl", 2, '{"_id": "p1", "text": "ice"}', ["corpus.jsonl, line 2", "'p1'", "line 1"]),
        ("corpus.jsonl", 2, '{"_id": "p2", "text": "ic', ["corpus.jsonl, line 2", "JSON"]),
        ("corpus.jsonl", 2, '["p2", "ice"]', ["corpus.jsonl, line 2", "object"]),
        ("corpus.jsonl", 2, '{"text": "ice"}', ["corpus.jsonl, line 2", '"_id"']),
        ("corpus.jsonl", 2, '{"_id": "p2", "text": null}', ["corpus.jsonl, line 2", '"text"']),
    ],
)
def test_a_bad_line_is_named(beir_folder, file, line, text, says):
    path = beir_folder / file
    lines = path.read_text().splitlines()
    lines[line - 1] = text
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError) as error:
        load_retrieval(f"beir:{beir_folder}", "test")
    assert all(part in str(error.value) for part in says), str(error.value)
    assert "\n" not in str(error.value)


def test_a_line_that_is_not_utf8_is_named(beir_folder):
    with open(beir_folder / "corpus.jsonl", "ab") as file:
        file.write(b'{"_id": "p11", "text": "gr\xfcn"}\n')
    with pytest.raises(InputError, match=r"corpus\.jsonl, line 11: not UTF-8"):
        load_corpus(f"beir:{beir_folder}")


@pytest.mark.parametrize("spec", ["beir:{}/nowhere", "beir:", "", "beer:{}", "glacier"])
def test_a_spec_that_names_nothing_is_refused(beir_folder, spec):
    with pytest.raises(InputError, match=r"no such folder|expected beir:DIR"):
        load_corpus(spec.format(beir_folder))


def test_a_missing_split_is_refused_with_those_there(beir_folder):
    with pytest.raises(InputError, match=r"no split 'tset'.*test, train"):
        load_retrieval(f"beir:{beir_folder}", "tset")


def test_a_missing_file_is_named(beir_folder):
    (beir_folder / "queries.jsonl").unlink()
    with pytest.raises(InputError, match=r"no such file .*queries\.jsonl"):
        load_retrieval(f"beir:{beir_folder}", "test")


def test_a_split_without_a_relevant_passage_is_refused(beir_folder):
    rows = "".join(f"{qid}\t{pid}\t0\n" for qid, pid, _ in QRELS["test"])
    (beir_folder / "qrels" / "test.tsv").write_text(rows)
    with pytest.raises(InputError, match="no passage as relevant"):
        load_retrieval(f"beir:{beir_folder}", "test")
