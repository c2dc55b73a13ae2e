"""dpr:DIR: passages, questions with answers, training files, and what is wrong in them."""

import gzip
import json
import shutil

import pytest
from sets import PASSAGES, write_dpr

from elasticlm.errors import InputError
from elasticlm.retrieval import json_arrays
from elasticlm.retrieval.data_specs import (
    check_spec,
    has_labels,
    load_corpus,
    load_queries,
    load_retrieval,
    load_training,
)
from elasticlm.retrieval.json_arrays import json_array


@pytest.fixture
def dpr_folder(tmp_path):
    return write_dpr(tmp_path / "nq")


def test_passages_are_those_of_the_file_quotes_included(dpr_folder):
    (dpr_folder / "psgs_w100.tsv").write_text('id\ttext\ttitle\n7\t"the ""old"" ice"\tcave\n8\tsnow, "fresh"\train\n')
    corpus = load_corpus(f"dpr:{dpr_folder}")
    assert (list(corpus.ids), list(corpus.passages)) == (["7", "8"], ['cave the "old" ice', 'rain snow, "fresh"'])


def test_questions_have_answers_over_all_passages(dpr_folder):
    data = load_retrieval(f"dpr:{dpr_folder}", "test")
    assert list(data.passage_ids) == [pid for pid, _, _ in PASSAGES]
    assert data.queries == ["what pulls the water", "who lives in the forest", "where is silver"]
    assert data.answers == {"0": ["the Moon", "moon"], "1": ["wolf"], "2": ["nowhere at all"]}
    assert data.judged == {}
    assert not data.has_self_hits
    assert load_queries(f"dpr:{dpr_folder}", "train")[1] == ["what is in the soil", "where is snow"]


def test_training_takes_the_passages_that_its_file_names(dpr_folder):
    data = load_training(f"dpr:{dpr_folder}", "train")
    assert list(data.passage_ids) == ["p10", "p8", "p7", "p3", "p1"]  # not p9: random negatives are left out
    assert data.qrels == {"0": {"p10": 1}, "1": {"p3": 1}}
    assert has_labels(f"dpr:{dpr_folder}", "train")
    assert not has_labels(f"dpr:{dpr_folder}", "test")
    with pytest.raises(InputError, match=r"no file test\.json"):
        load_training(f"dpr:{dpr_folder}", "test")


def test_triviaqas_name_of_a_passages_id_and_compressed_files_are_read(dpr_folder):
    file = dpr_folder / "biencoder-nq-train.json"
    with gzip.open(dpr_folder / "trivia-train.json.gz", "wt") as compressed:
        compressed.write(file.read_text().replace("passage_id", "psg_id"))
    file.unlink()
    assert load_training(f"dpr:{dpr_folder}", "train").qrels == {"0": {"p10": 1}, "1": {"p3": 1}}


def test_the_passages_may_be_those_of_another_spec(dpr_folder, tmp_path, capsys):
    questions = tmp_path / "questions"
    questions.mkdir()
    shutil.move(dpr_folder / "nq-test.qas.csv", questions / "test.csv")
    with pytest.raises(InputError, match="no passages to search; name their data spec with --corpus"):
        load_retrieval(f"dpr:{questions}", "test")
    data = load_retrieval(f"dpr:{questions}", "test", corpus=f"dpr:{dpr_folder}")
    assert (len(data.passage_ids), data.corpus_spec) == (10, f"dpr:{dpr_folder}")
    assert data.answers is not None
    judged = load_retrieval(f"dpr:{dpr_folder}", "train", corpus=f"dpr:{dpr_folder}")
    assert judged.judged == {"0": {"p10": 1}, "1": {"p3": 1}}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "psgs_w100.tsv",
            "id\ttext\ttitle\n1\tice\n",
            r"psgs_w100.tsv, line 2: has 2 columns; expected id, text",
        ),
        ("psgs_w100.tsv", "1\tice\tsnow\n", r"psgs_w100.tsv, line 1: expected the header id, text, title"),
        ("psgs_w100.tsv", "id\ttext\ttitle\n", r"psgs_w100.tsv holds no passage"),
        ("psgs_w100.tsv", "id\ttext\ttitle\n1\ta\tb\n2\ta\tb\n1\tc\td\n", r"line 4: duplicate id '1', first in"),
        (
            "nq-test.qas.csv",
            "who\t['a']\nwhere\n",
            r"nq-test.qas.csv, line 2: has 1 columns; expected question, answers",
        ),
        ("nq-test.qas.csv", "who\t['a'\n", r"nq-test.qas.csv, line 1: expected a question and a list of its answers"),
        ("nq-test.qas.csv", "who\t[1]\n", r"line 1: expected a question and a list"),
        ("nq-test.qas.csv", "who\t[]\n", r"line 1: expected a question and a list"),
        ("nq-test.qas.csv", "who\t__import__('os')\n", r"line 1: expected a question and a list"),
        ("nq-test.qas.csv", "", r"nq-test.qas.csv holds no question"),
        ("trivia-test.qas.csv", "who\t['a']\n", r"several files for split test: nq-test.qas.csv, trivia-test.qas.csv"),
    ],
)
def test_what_is_wrong_is_one_line_with_its_place(dpr_folder, name, content, message):
    (dpr_folder / name).write_text(content)
    with pytest.raises(InputError, match=message) as error:
        load_retrieval(f"dpr:{dpr_folder}", "test")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace('"answers"', '"answer"', 1), r"train.json, line 2: expected .*\"question\""),
        (lambda text: text.replace("passage_id", "id"), r"train.json, line 2: expected"),
        (lambda text: text[:-30], r"train.json, line \d+: not JSON"),
        (lambda text: "{}", r"train.json, line 1: expected an array"),
        (lambda text: "[]", r"train.json holds no question"),
    ],
)
def test_a_broken_training_file_is_one_line_with_its_place(dpr_folder, change, message):
    file = dpr_folder / "biencoder-nq-train.json"
    file.write_text(change(file.read_text()))
    with pytest.raises(InputError, match=message) as error:
        load_training(f"dpr:{dpr_folder}", "train")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("chunk", [1, 7, 1000])
@pytest.mark.parametrize("indent", [None, 4])
def test_a_json_array_is_read_element_by_element(tmp_path, monkeypatch, chunk, indent):
    monkeypatch.setattr(json_arrays, "CHUNK", chunk)
    values = [{"a": [1, {"b": "]} ,["}]}, {}, {"c": "é\n"}]
    (tmp_path / "file.json").write_text(json.dumps(values, indent=indent, ensure_ascii=False), "utf-8")
    found = list(json_array(tmp_path / "file.json"))
    assert [value for _, value in found] == values
    lines = [int(place.rpartition(" ")[2]) for place, _ in found]
    assert lines == ([1, 1, 1] if indent is None else [2, 10, 11])


def test_unknown_folders_and_splits_are_refused(dpr_folder):
    with pytest.raises(InputError, match="no such folder nowhere"):
        check_spec("dpr:nowhere")
    with pytest.raises(InputError, match=r"no split 'tset': expected a file such as nq-tset.qas.csv"):
        load_retrieval(f"dpr:{dpr_folder}", "tset")
