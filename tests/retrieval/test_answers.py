"""DPR's answer matching, by hand-worked values."""

import numpy as np
import pytest

from elasticlm.retrieval.answers import AnswerMatcher, has_answer, words_of
from elasticlm.retrieval.corpus import Corpus, RetrievalData

TEXT = "In 1903, Röntgen (1845–1923) didn't see the U.S.; his wife, Anna Bertha Ludwig, died in 1919."


def test_tokens_are_runs_of_letters_digits_and_marks_and_single_symbols():
    assert words_of("U.S. won 3-2!") == ["u", ".", "s", ".", "won", "3", "-", "2", "!"]
    assert words_of("Röntgen") == ["ro\u0308ntgen"]  # NFD: o with a combining mark, one token
    assert words_of(" \t\u00a0\u200b\n") == []  # blanks and control characters are no tokens


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["RÖNTGEN"], True),  # case does not count
        (["Ro\u0308ntgen"], True),  # nor how the mark is encoded
        (["Rontgen"], False),  # but the mark does
        (["U.S."], True),
        (["US"], False),
        (["190"], False),  # part of a token
        (["Bertha Ludwig"], True),
        (["Bertha  Ludwig"], True),  # blanks do not count
        (["Ludwig Bertha"], False),
        (["Anna Ludwig"], False),  # a sequence has no gaps
        (["Anna Bertha Ludwig died"], False),  # nor is punctuation left out
        (["Ludwig, died in 1919."], True),
        (["nobody", "1923"], True),  # one of them is enough
        ([], False),
    ],
)
def test_an_answer_is_a_sequence_of_tokens(answers, expected):
    assert has_answer(answers, TEXT) is expected


@pytest.fixture
def data():
    """Ten passages, of which p0's title holds an answer, p5 and p7 answer a, and none answers b."""
    texts = [f"passage number {i}" + (" says Paris" if i in (5, 7) else "") for i in range(30)]
    corpus = Corpus([f"p{i}" for i in range(30)], ["Paris", *[""] * 29], texts)
    return RetrievalData.of("dpr:x", "test", corpus, {"a": "where", "b": "who"}, {"a": {}, "b": {}},
                            answers={"a": ["paris"], "b": ["nobody"]})  # fmt: skip


def test_success_counts_the_text_of_the_best_k_passages_without_titles(data):
    run = {"a": {f"p{i}": -float(i) for i in range(30)}, "b": {"p5": 1.0}}
    values = AnswerMatcher(data).success(run)
    assert {name: found.tolist() for name, found in values.items()} == {
        "Success@5": [0.0, 0.0],  # p0 to p4; p0 has the answer in its title alone
        "Success@20": [1.0, 0.0],
        "Success@100": [1.0, 0.0],
    }
    assert AnswerMatcher(data).success({"a": {"p7": 1.0}})["Success@5"].tolist() == [1.0, 0.0]


def test_only_hits_down_to_the_first_answer_are_read_and_read_once(data, monkeypatch):
    read = []
    text = RetrievalData.text
    monkeypatch.setattr(RetrievalData, "text", lambda self, row: read.append(row) or text(self, row))
    matcher, run = AnswerMatcher(data), {"a": {f"p{i}": -float(i) for i in range(10)}}
    first, second = matcher.success(run), matcher.success(run)
    assert read == [0, 1, 2, 3, 4, 5]
    np.testing.assert_equal(first, second)


def test_splits_with_other_answers_are_told_apart(data):
    other = RetrievalData.of(data.spec, data.split, Corpus(["p"], [""], ["text"]), {"a": "where"}, {"a": {}},
                             answers={"a": ["london"]})  # fmt: skip
    assert other.split_sha256 != data.split_sha256
