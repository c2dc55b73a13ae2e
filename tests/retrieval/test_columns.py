"""Columns of texts: like lists of the same strings, without being lists."""

import hashlib

import numpy as np
import pyarrow as pa
import pytest
from sets import PASSAGES

from elasticlm.retrieval import columns, passage_ids
from elasticlm.retrieval.columns import (
    ArrowColumn,
    Column,
    JoinedColumn,
    KeptColumn,
    PassageColumn,
    first_repeat,
    rows_of,
)
from elasticlm.retrieval.corpus import Corpus
from elasticlm.retrieval.data_specs import load_corpus, load_retrieval
from elasticlm.retrieval.passage_ids import PassageIds

TEXTS = [f"{'é' * (number % 3)} line\n{number}" for number in range(23)]


def in_arrow(texts):
    return ArrowColumn(pa.chunked_array([texts[:5], texts[5:6], texts[6:]]))


COLUMNS = {
    "arrow": in_arrow(TEXTS),
    "packed": PassageIds(TEXTS),
    "passages": PassageColumn(in_arrow([text[:2] for text in TEXTS]), in_arrow([text[3:] for text in TEXTS])),
    "kept": KeptColumn(in_arrow([*"ab", *TEXTS[:9], *"cd", *TEXTS[9:], "e"]), np.r_[2:11, 13:27]),
    "kept of a list": KeptColumn([*TEXTS, "e"], np.arange(23)),
    "kept, far apart": KeptColumn(
        in_arrow([part for text in TEXTS for part in (text, *"abcdefgh")]), np.arange(23) * 9
    ),
    "joined": JoinedColumn([in_arrow(TEXTS[:6]), [], TEXTS[6:7], in_arrow(TEXTS[7:])]),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_a_column_is_like_a_list_of_its_texts(kind, monkeypatch):
    monkeypatch.setattr(columns, "BLOCK", 4)
    column = COLUMNS[kind]
    expected = [f"{text[:2]} {text[3:]}".strip() for text in TEXTS] if kind == "passages" else TEXTS
    assert list(column) == expected
    assert column == expected
    assert expected == column
    assert column != expected[1:]
    assert column != [*expected[:-1], "another"]
    for row in (0, 7, 22, -1, np.int64(9)):
        assert column[row] == expected[row]
    for rows in (slice(3, 9), slice(20, 40), slice(5, 5), slice(-3, None), slice(9, 2), slice(None, None, -4)):
        assert column[rows] == expected[rows]
    with pytest.raises(IndexError):
        column[23]


def test_the_passages_of_a_file_stay_in_arrow(beir_folder):
    with open(beir_folder / "corpus.jsonl", "a") as file:
        file.write('{"_id": "empty", "title": " ", "text": ""}\n')
    corpus, data = load_corpus(f"beir:{beir_folder}"), load_retrieval(f"beir:{beir_folder}")
    for column in (corpus.ids, corpus.titles, corpus.texts):
        assert type(column) is ArrowColumn
    assert type(corpus.passages) is PassageColumn
    for column in (data.passage_ids, data.titles, data.passages):
        assert isinstance(column, Column)
    assert data.passage_ids == [pid for pid, _, _ in PASSAGES]
    assert data.passages == [f"{title} {text}".strip() for _, title, text in PASSAGES]


def test_a_corpus_has_the_same_sha256_whatever_holds_it(beir_folder):
    lists = Corpus(*map(list, zip(*PASSAGES, strict=True)))
    lines = [f"{pid}\t{(title + ' ' + text).strip()}\n" for pid, title, text in PASSAGES]
    expected = hashlib.sha256("".join(lines).encode()).hexdigest()
    assert load_corpus(f"beir:{beir_folder}").sha256 == lists.sha256 == expected


@pytest.mark.parametrize("same_hash", [False, True])
def test_the_first_repeat_is_found(same_hash, monkeypatch):
    if same_hash:
        monkeypatch.setattr(columns, "hash", lambda text: 7, raising=False)
    assert first_repeat(["a", "b", "c"]) is None
    assert first_repeat(["a", "b", "c", "b", "a"]) == (3, 1)
    assert first_repeat([]) is None


@pytest.mark.parametrize("same_hash", [False, True])
def test_ids_are_found_by_row_and_rows_by_id(same_hash, monkeypatch):
    if same_hash:
        monkeypatch.setattr(passage_ids, "hash", lambda text: 7, raising=False)
    ids = PassageIds(["p1", "é", "p11", "p2"])
    assert ids.rows(["p2", "p1", "p3", "", "é"]).tolist() == [3, 0, -1, -1, 1]
    assert ids.rows([]).tolist() == []
    assert "p11" in ids
    assert "p" not in ids
    assert 1 not in ids
    assert PassageIds([]).rows(["p1"]).tolist() == [-1]


def test_rows_of_wanted_ids_are_found():
    assert rows_of(["a", "b", "c", "d"], {"c", "a", "x"}) == {"a": 0, "c": 2}
