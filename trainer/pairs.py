"""Training pairs: queries and their relevant passages."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from elasticlm.errors import InputError
from elasticlm.retrieval.data import load_retrieval
from trainer.mixture import Exclusion


@dataclass(frozen=True)
class TrainingPairs:
    """Queries of a split, and rows of ``passages`` relevant to each, the best grade first."""

    query_ids: list[str]
    queries: list[str]
    passage_ids: list[str]
    passages: list[str]
    positives: list[list[int]]

    def sample(self, count: int, seed: int) -> "TrainingPairs":
        """At most so many queries, drawn at random, in their own order; all passages."""
        if len(self.queries) <= count:
            return self
        rows = np.sort(np.random.default_rng(seed).choice(len(self.queries), count, replace=False)).tolist()
        return replace(
            self,
            query_ids=[self.query_ids[i] for i in rows],
            queries=[self.queries[i] for i in rows],
            positives=[self.positives[i] for i in rows],
        )

    def with_passages(self, rows: np.ndarray) -> "TrainingPairs":
        """Only these passages (rows, ascending), all positives among them."""
        return replace(
            self,
            passage_ids=[self.passage_ids[i] for i in rows],
            passages=[self.passages[i] for i in rows],
            positives=[np.searchsorted(rows, found).tolist() for found in self.positives],
        )


def load_pairs(specs: Sequence[str], split: str, exclusion: Exclusion) -> TrainingPairs:
    """Load the queries of a split that have a relevant passage (grade above 0), of one or several data specs.

    What an excluded set shares is left out: queries, and passages, be they relevant or not.
    """
    query_ids: list[str] = []
    queries: list[str] = []
    passage_ids: list[str] = []
    passages: list[str] = []
    positives: list[list[int]] = []
    for spec in specs:
        data = load_retrieval(spec, split)
        kept = [(pid, text) for pid, text in zip(data.passage_ids, data.passages, strict=True) if exclusion.keeps(text)]
        row = {pid: len(passages) + i for i, (pid, _) in enumerate(kept)}
        passage_ids += [pid for pid, _ in kept]
        passages += [text for _, text in kept]
        for qid, query in zip(data.query_ids, data.queries, strict=True):
            grades = [(grade, row[pid]) for pid, grade in data.qrels[qid].items() if grade > 0 and pid in row]
            if grades and exclusion.keeps(query):
                query_ids.append(qid)
                queries.append(query)
                positives.append([i for _, i in sorted(grades, key=lambda pair: -pair[0])])
    if not queries:
        raise InputError(f"{', '.join(specs)}: no query is left that shares nothing with an excluded set")
    return TrainingPairs(query_ids, queries, passage_ids, passages, positives)
