"""Answer matching of DPR (Karpukhin et al. 2020): a passage is relevant if it contains one of a question's answers.

Tokens, normalisation and comparison are those of DPR's ``has_answer`` (facebookresearch/DPR, dpr/data/qa_validation.py
and ``SimpleTokenizer`` in dpr/utils/tokenizers.py), so that figures compare with those published.
"""

import unicodedata
from collections.abc import Mapping, Sequence

import numpy as np
import regex

from elasticlm.command import progress
from elasticlm.retrieval.columns import rows_of
from elasticlm.retrieval.corpus import RetrievalData
from elasticlm.retrieval.measures import Run, ranking

SUCCESS_AT = (5, 20, 100)
SUCCESS_MEASURES = tuple(f"Success@{k}" for k in SUCCESS_AT)
"""Measures in ir_measures' names; the literature on open-domain question answering calls them R@k or top-k accuracy."""
TOKEN = regex.compile(r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]")


def words_of(text: str) -> list[str]:
    """Tokens of a text in lower case, after NFD normalisation: runs of letters, digits and marks, and single symbols.

    >>> words_of("Don't stop: 1984!")
    ['don', "'", 't', 'stop', ':', '1984', '!']
    """
    return [token.lower() for token in TOKEN.findall(unicodedata.normalize("NFD", text))]


def has_answer(answers: Sequence[str], text: str) -> bool:
    """Whether a text contains one of the answers as a sequence of tokens.

    >>> has_answer(["the Beatles"], "A song by The  Beatles (1965)."), has_answer(["Beatle"], "by The Beatles")
    (True, False)
    """
    return _contains(words_of(text), [words_of(answer) for answer in answers])


class AnswerMatcher:
    """Looks for the answers of a set's questions in the passages of runs.

    Only the texts of hits are read, down to the first that answers a question; what was found is kept, since several
    levels find the same passages.
    """

    def __init__(self, data: RetrievalData) -> None:
        self._data = data
        self._answers = {qid: [words_of(one) for one in found] for qid, found in (data.answers or {}).items()}
        self._known: dict[tuple[str, str], bool] = {}

    def success(self, run: Run) -> dict[str, np.ndarray]:
        """Return Success@5, @20 and @100, FloatArrays [queries]: 1 if one of the best k passages has an answer.

        Ties are broken as by ``measures.ranking``.
        """
        best = {qid: ranking(run.get(qid, {}))[: max(SUCCESS_AT)] for qid in self._data.query_ids}
        rows = rows_of(self._data.passage_ids, {pid for found in best.values() for pid in found})
        ranks = np.array([
            next((rank for rank, pid in enumerate(found, 1) if self._answered(qid, pid, rows)), np.inf)
            for qid, found in progress(best.items(), desc="answers", unit="query")
        ])  # fmt: skip
        return {name: (ranks <= k).astype(float) for name, k in zip(SUCCESS_MEASURES, SUCCESS_AT, strict=True)}

    def _answered(self, query_id: str, passage_id: str, rows: Mapping[str, int]) -> bool:
        pair = query_id, passage_id
        if pair not in self._known:
            row = rows.get(passage_id)
            self._known[pair] = row is not None and _contains(words_of(self._data.text(row)), self._answers[query_id])
        return self._known[pair]


def _contains(words: Sequence[str], answers: Sequence[Sequence[str]]) -> bool:
    """Whether one of the answers occurs among the words; as for DPR, an answer without tokens occurs in every text."""
    return any(
        words[start : start + len(answer)] == answer
        for answer in answers
        for start in range(len(words) - len(answer) + 1)
    )
