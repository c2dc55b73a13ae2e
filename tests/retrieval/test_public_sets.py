"""What public sets bring: they load, with one line that counts what they lack; real faults are refused."""

import gzip
import json

import pytest
from sets import PASSAGES, write_beir

from elasticlm.errors import InputError
from elasticlm.retrieval.corpus import Gaps
from elasticlm.retrieval.data_specs import load_corpus, load_labelled, load_queries, load_retrieval, load_texts


@pytest.fixture(autouse=True)
def _nothing_was_said(monkeypatch):
    monkeypatch.setattr(Gaps, "_said", set())


def write(folder, name, *lines):
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines))


def add(folder, name, *lines):
    with open(folder / name, "a") as file:
        file.writelines(line + "\n" for line in lines)


def warnings(capsys):
    return capsys.readouterr().err.splitlines()


def test_a_judged_passage_that_the_corpus_lacks_stays_relevant(beir_folder, capsys):
    add(beir_folder, "qrels/test.tsv", "q2\tgone\t1", "q3\tgone\t1", "q4\tlost\t2")
    data = load_retrieval(f"beir:{beir_folder}")
    assert data.qrels["q2"] == {"p5": 1, "gone": 1}
    assert "gone" not in data.passage_ids
    assert warnings(capsys) == [f"beir:{beir_folder}: 2 judged passages are not in the corpus"]


def test_a_judged_query_without_a_text_is_left_out(beir_folder, capsys):
    add(beir_folder, "queries.jsonl", '{"_id": "q8", "text": " "}')
    add(beir_folder, "qrels/test.tsv", "q8\tp1\t1", "q9\tp1\t1")
    data = load_retrieval(f"beir:{beir_folder}")
    assert data.query_ids == ["q1", "q2", "q3", "q4", "q5"]
    assert list(data.qrels) == data.query_ids
    assert load_queries(f"beir:{beir_folder}", "test")[0] == data.query_ids
    assert warnings(capsys) == [f"beir:{beir_folder}: 2 judged queries without a text are left out"]


def test_an_empty_passage_is_kept_and_never_found_and_a_title_is_enough(beir_folder, capsys):
    add(
        beir_folder,
        "corpus.jsonl",
        '{"_id": "e", "title": "", "text": " "}',
        '{"_id": "t", "title": "ice", "text": ""}',
    )
    add(beir_folder, "qrels/test.tsv", "q1\te\t1", "q1\tt\t1")
    corpus, data = load_corpus(f"beir:{beir_folder}"), load_retrieval(f"beir:{beir_folder}")
    assert corpus.ids[-2:] == ["e", "t"]
    assert corpus.passages[-2:] == ["", "ice"]
    assert data.passage_ids == [*(pid for pid, _, _ in PASSAGES), "t"]
    assert data.qrels["q1"] == {"p2": 2, "p1": 1, "e": 1, "t": 1}
    assert load_texts(f"beir:{beir_folder}") == data.passages
    assert warnings(capsys) == [f"beir:{beir_folder}: 1 passages are empty"]


def test_everything_that_is_missing_is_counted_in_one_line_that_comes_once(beir_folder, capsys):
    add(beir_folder, "corpus.jsonl", '{"_id": "e", "text": ""}')
    add(beir_folder, "qrels/test.tsv", "q1\tgone\t1", "q9\tp1\t1")
    for _ in range(2):
        load_retrieval(f"beir:{beir_folder}")
    (line,) = warnings(capsys)
    assert line.endswith(
        ": 1 judged queries without a text are left out, 1 judged passages are not in the corpus, 1 passages are empty"
    )


@pytest.mark.parametrize(
    "lines",
    [
        ("q1 0 p2 2", "q1 0 p1 -1"),
        ("q1\t0\tp2\t2", "q1\tQ0\tp1\t-1"),
        ("q1   0    p2    2   ", "", "q1 0 p1 -1"),
        ("query-id\tcorpus-id\tscore", "q1\tp2\t2", "q1\tp1\t-1.0"),
        ("query_id\tcorpus_id\tscore", "q1\tp2\t2", "q1 0 p1 -1"),
        ("q1\tp2\t2", "q1\tp1\t-1"),
    ],
)
def test_judgements_have_beirs_columns_or_trecs(beir_folder, lines):
    write(beir_folder, "qrels/test.tsv", *lines)
    assert load_retrieval(f"beir:{beir_folder}").qrels == {"q1": {"p2": 2, "p1": -1}}


def test_queries_that_are_judged_0_alone_are_kept(beir_folder):
    add(beir_folder, "qrels/test.tsv", "q7\tp1\t0")
    assert load_retrieval(f"beir:{beir_folder}").qrels["q7"] == {"p1": 0}


def test_compressed_files_are_read_like_plain_ones(beir_folder):
    write(beir_folder, "candidates/test.tsv", "q1\tp1\t0", "q1\tp2\t1")
    plain = load_retrieval(f"beir:{beir_folder}")
    for file in [*beir_folder.rglob("*.jsonl"), *beir_folder.rglob("*.tsv")]:
        file.with_name(file.name + ".gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    assert load_retrieval(f"beir:{beir_folder}") == plain
    with pytest.raises(InputError, match=r"no split 'dev'.*test, train"):
        load_retrieval(f"beir:{beir_folder}", "dev")


def test_texts_and_labelled_sentences_may_be_compressed_too(tmp_path):
    lines = [f"the river number {i} runs to the sea" for i in range(100)]
    (tmp_path / "text.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    assert load_corpus(f"text:{tmp_path}/text.gz").texts == lines
    rows = [{"sentence1": "ice", "label": 0}, {"sentence1": "rain", "label": 1}]
    (tmp_path / "train.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    assert load_labelled(f"glue:{tmp_path}", "train").targets.tolist() == [0, 1]


def test_a_compressed_file_that_is_cut_off_is_refused(beir_folder):
    file = beir_folder / "corpus.jsonl"
    file.with_name("corpus.jsonl.gz").write_bytes(gzip.compress(file.read_bytes() * 100)[:200])
    file.unlink()
    with pytest.raises(InputError, match=r"corpus\.jsonl\.gz, .*cut off"):
        load_corpus(f"beir:{beir_folder}")


def test_ids_may_be_numbers_and_files_may_come_from_windows(tmp_path):
    mark = "\ufeff"
    write(tmp_path, "corpus.jsonl", mark + '{"_id": 1, "text": "ice"}\r', '{"_id": 2, "text": "rain"}\r')
    write(tmp_path, "queries.jsonl", mark + '{"_id": 7, "text": "cold"}\r')
    write(tmp_path, "qrels/test.tsv", mark + "query-id\tcorpus-id\tscore\r", "7\t1\t1\r")
    data = load_retrieval(f"beir:{tmp_path}")
    assert (data.passage_ids, data.query_ids, data.qrels) == (["1", "2"], ["7"], {"7": {"1": 1}})
    assert data.passages == ["ice", "rain"]


def test_a_query_that_stands_in_the_corpus_does_not_find_itself(beir_folder):
    assert not load_retrieval(f"beir:{beir_folder}").has_self_hits
    add(beir_folder, "corpus.jsonl", '{"_id": "q1", "text": "how is a glacier cave formed"}')
    data = load_retrieval(f"beir:{beir_folder}")
    assert data.has_self_hits
    assert data.without_self("q1", {"q1": 1.0, "p2": 0.5}) == {"p2": 0.5}
    assert data.without_self("q2", {"q1": 1.0, "p2": 0.5}) == {"q1": 1.0, "p2": 0.5}


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("qrels/test.tsv", ["q9\tp1\t1"], "none of the judged queries, such as 'q9', has a text"),
        ("qrels/test.tsv", ["q1\tgone\t1"], "none of the passages .* such as 'gone', is in the corpus"),
        ("qrels/test.tsv", ["q1 p1 1"], r"test\.tsv, line 1: expected query-id, corpus-id, score"),
        ("qrels/test.tsv", ["q1 0 p1 high"], r"test\.tsv, line 1: score 'high'"),
        ("corpus.jsonl", ['{"_id": "p1", "title": "ice"}'], r'corpus\.jsonl, line 1: expected "text"'),
        ("corpus.jsonl", ['{"_id": "p1", "text": "a"}', '{"_id": " p1", "text": "b"}'], 'line 2: duplicate "_id"'),
    ],
)
def test_real_faults_are_refused_in_one_line(beir_folder, name, lines, message):
    write(beir_folder, name, *lines)
    with pytest.raises(InputError, match=message):
        load_retrieval(f"beir:{beir_folder}")


def test_a_new_set_has_no_gaps(tmp_path, capsys):
    load_retrieval(f"beir:{write_beir(tmp_path / 'whole')}")
    assert warnings(capsys) == []
