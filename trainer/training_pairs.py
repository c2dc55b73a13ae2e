"""What a task is trained on: queries with their relevant passages, or labelled sentences."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from elasticlm.errors import InputError
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.retrieval.data_specs import load_labelled, load_retrieval
from elasticlm.retrieval.labelled import Labelled
from elasticlm.trainer.mixture import Exclusion
from elasticlm.trainer.training_texts import TokenizedTexts


@dataclass(frozen=True)
class TrainingPairs:
    """Queries of a split, and rows of ``passages`` relevant to each, the best grade first.

    ``refused`` are those among a query's judged candidates that are not relevant; none where the set has no candidates.
    ``own`` is the row of the query itself, which must not be a negative; None if it is not among the passages.
    """

    query_ids: list[str]
    queries: list[str]
    passage_ids: list[str]
    passages: list[str]
    positives: list[list[int]]
    refused: list[list[int]]
    own: list[int | None]

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
            refused=[self.refused[i] for i in rows],
            own=[self.own[i] for i in rows],
        )

    def with_passages(self, rows: np.ndarray) -> "TrainingPairs":
        """Only these passages (rows, ascending), all positives and what was refused among them."""
        place: dict[int | None, int] = {row: i for i, row in enumerate(rows.tolist())}
        return replace(
            self,
            passage_ids=[self.passage_ids[i] for i in rows],
            passages=[self.passages[i] for i in rows],
            positives=[np.searchsorted(rows, found).tolist() for found in self.positives],
            refused=[np.searchsorted(rows, found).tolist() for found in self.refused],
            own=[place.get(row) for row in self.own],
        )

    @property
    def no_negatives(self) -> list[set[int]]:
        """Rows that are no negatives of each query: its positives, and itself."""
        return [{*positives, *([] if own is None else [own])}
                for positives, own in zip(self.positives, self.own, strict=True)]  # fmt: skip


def load_pairs(specs: Sequence[str], split: str, exclusion: Exclusion) -> TrainingPairs:
    """Load the queries of a split that have a relevant passage (grade above 0), of one or several data specs.

    What an excluded set shares is left out: queries, and passages, be they relevant or not.
    """
    query_ids: list[str] = []
    queries: list[str] = []
    passage_ids: list[str] = []
    passages: list[str] = []
    positives: list[list[int]] = []
    refused: list[list[int]] = []
    own: list[int | None] = []
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
                candidates = (data.candidates or {}).get(qid, {})
                refused.append([row[pid] for pid, grade in candidates.items() if grade <= 0 and pid in row])
                own.append(row.get(qid))
    if not queries:
        raise InputError(f"{', '.join(specs)}: no query is left that shares nothing with an excluded set")
    return TrainingPairs(query_ids, queries, passage_ids, passages, positives, refused, own)


def texts_to_join(
    model: ElasticModel, pairs: TrainingPairs, query_tokens: int | None = None, passage_tokens: int | None = None
) -> tuple[TokenizedTexts, TokenizedTexts, int]:
    """Queries and passages tokenised alone, to be joined to pairs as a reranker reads them, and a pair's length limit.

    Args:
        query_tokens, passage_tokens: length limits; by default half a pair, and 128.
    """
    limit = model.config.max_tokens.pair
    longest = min(query_tokens or limit // 2, limit - 3)
    queries = TokenizedTexts.of_pairs(model, ((text, None) for text in pairs.queries), longest)
    passages = TokenizedTexts.of_pairs(model, ((text, None) for text in pairs.passages), passage_tokens or 128)
    return queries, passages, limit


def load_examples(
    specs: Sequence[str], split: str, known: Sequence[str] | None, exclusion: Exclusion
) -> tuple[Labelled, Tensor]:
    """Load labelled sentences of one spec, without those that an excluded set shares, and their targets [examples].

    Args:
        known: the labels that a model knows already, which these must be; None: any.
    """
    if len(specs) > 1:
        raise InputError("labelled sentences come from one data spec: several would need the same labels")
    data = load_labelled(specs[0], split, known)
    data = data.kept([i for i, pair in enumerate(data.pairs) if all(exclusion.keeps(text) for text in pair if text)])
    return data, torch.from_numpy(data.targets.astype(np.float32) if len(data.labels) == 1 else data.targets)
