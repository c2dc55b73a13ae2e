"""msmarco-docs:DIR: the official files, and what is wrong in them."""

import gzip

import pytest
from sets import PASSAGES, QUERIES, write_msmarco_docs

from elasticlm.errors import InputError
from elasticlm.retrieval.columns import ArrowColumn
from elasticlm.retrieval.data_specs import check_spec, has_labels, load_corpus, load_queries, load_retrieval
from elasticlm.retrieval.measures import read_trec_run


@pytest.fixture
def docs_folder(tmp_path):
    return write_msmarco_docs(tmp_path / "docs")


def test_documents_are_title_and_body_and_stay_in_their_file(docs_folder):
    corpus = load_corpus(f"msmarco-docs:{docs_folder}")
    assert isinstance(corpus.texts, ArrowColumn)
    assert list(corpus.ids) == [pid for pid, _, _ in PASSAGES]
    assert corpus.passages[0] == "glacier the glacier melts slow in the warm sun"


def test_a_split_has_the_queries_that_it_judges(docs_folder):
    data = load_retrieval(f"msmarco-docs:{docs_folder}", "dev")
    assert data.query_ids == ["q1", "q2", "q3", "q4", "q5"]
    assert data.queries[0] == QUERIES["q1"]
    assert data.qrels["q1"] == {"p2": 2, "p1": 1}
    assert load_queries(f"msmarco-docs:{docs_folder}", "train")[0][:3] == ["t0", "t1", "t2"]
    assert has_labels(f"msmarco-docs:{docs_folder}", "dev")
    assert not has_labels(f"msmarco-docs:{docs_folder}", "test")


def test_a_compressed_run_is_read_and_its_ids_are_shared(docs_folder):
    run = read_trec_run(docs_folder / "msmarco-docdev-top100.gz")
    assert list(run) == ["q1", "q2", "q3", "q4", "q5"]
    assert run["q1"]["p3"] == -3.0
    assert {id(pid) for pid in run["q1"]} == {id(pid) for pid in run["q2"]}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "msmarco-docs.tsv",
            "D1\thttp://a\ttitle\n",
            r"msmarco-docs.tsv, line 1: has 3 columns; expected docid",
        ),
        ("msmarco-docs.tsv", "D1\tu\tt\tb\nD1\tu\tt\tc\n", r"line 2: duplicate docid 'D1', first in line 1"),
        ("msmarco-docs.tsv", "\tu\tt\tb\n", r"line 1: the docid is empty"),
        ("msmarco-docs.tsv", "", r"msmarco-docs.tsv holds no document"),
        (
            "msmarco-docdev-queries.tsv",
            "q1 what\n",
            r"msmarco-docdev-queries.tsv, line 1: has 1 columns; expected qid",
        ),
        ("msmarco-docdev-qrels.tsv", "q1 0 p1\n", r"msmarco-docdev-qrels.tsv, line 1: expected query-id"),
    ],
)
def test_what_is_wrong_is_one_line_with_its_place(docs_folder, name, content, message):
    (docs_folder / name).write_text(content)  # a plain file comes before a compressed one
    with pytest.raises(InputError, match=message) as error:
        load_retrieval(f"msmarco-docs:{docs_folder}", "dev")
    assert "\n" not in str(error.value)


def test_missing_files_are_named(docs_folder):
    with pytest.raises(InputError, match="no such folder nowhere"):
        check_spec("msmarco-docs:nowhere")
    with pytest.raises(InputError, match=r"no split 'test', since there is no file .*msmarco-doctest-queries.tsv"):
        load_retrieval(f"msmarco-docs:{docs_folder}", "test")
    (docs_folder / "msmarco-docs.tsv.gz").unlink()
    with pytest.raises(InputError, match=r"no such file .*msmarco-docs.tsv"):
        load_corpus(f"msmarco-docs:{docs_folder}")


def test_a_run_that_is_cut_off_is_refused_with_its_line(docs_folder):
    file = docs_folder / "msmarco-docdev-top100.gz"
    with gzip.open(file, "wt") as lines:
        lines.write("q1 Q0 p1 1 2.5 tag\nq1 p1 1\n")
    with pytest.raises(InputError, match=r"top100.gz, line 2: expected: query Q0"):
        read_trec_run(file)
    with gzip.open(file, "wt") as lines:
        lines.write("q1 Q0 p1 1 2.5 tag\n")
    file.write_bytes(file.read_bytes()[:-12])
    with pytest.raises(InputError, match="not a gzip file, or cut off"):
        read_trec_run(file)
