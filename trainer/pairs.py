"""Training pairs: queries and their relevant passages."""

from dataclasses import dataclass

import numpy as np

from elasticlm.retrieval.data import load_retrieval


@dataclass(frozen=True)
class TrainingPairs:
    """Queries of a split, and rows of ``passages`` relevant to each, the best grade first."""

    queries: list[str]
    passages: list[str]
    positives: list[list[int]]

    def sample(self, count: int, seed: int) -> "TrainingPairs":
        """At most so many queries, drawn at random, in their own order; all passages."""
        if len(self.queries) <= count:
            return self
        rows = np.sort(np.random.default_rng(seed).choice(len(self.queries), count, replace=False)).tolist()
        return TrainingPairs([self.queries[i] for i in rows], self.passages, [self.positives[i] for i in rows])


def load_pairs(spec: str, split: str) -> TrainingPairs:
    """Load the queries of a split that have a relevant passage (grade above 0)."""
    data = load_retrieval(spec, split)
    row = {pid: i for i, pid in enumerate(data.passage_ids)}
    queries, positives = [], []
    for qid, query in zip(data.query_ids, data.queries, strict=True):
        grades = [(grade, row[pid]) for pid, grade in data.qrels[qid].items() if grade > 0]
        if grades:
            queries.append(query)
            positives.append([i for _, i in sorted(grades, key=lambda pair: -pair[0])])
    return TrainingPairs(queries, data.passages, positives)
