"""What a task is trained on: queries with their relevant passages, or labelled sentences."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from elasticlm.errors import InputError
from elasticlm.model.elastic_model import ElasticModel
from elasticlm.retrieval.columns import JoinedColumn, KeptColumn
from elasticlm.retrieval.corpus import Qrels
from elasticlm.retrieval.data_specs import load_corpus, load_labelled, load_queries, load_sentences, load_training
from elasticlm.retrieval.labelled import Labelled, Sentences
from elasticlm.trainer.mixture import Exclusion
from elasticlm.trainer.training_texts import TokenizedTexts


@dataclass(frozen=True)
class TrainingPairs:
    """Queries of a split, and rows of ``passages`` relevant to each, the best grade first; none without labels.

    Passages stay where they are until they are read (see elasticlm.retrieval.columns). ``refused`` are those among a
    query's judged candidates that are not relevant; none where the set has no candidates. ``own`` is the row of the
    query itself, which must not be a negative; None if it is not among the passages.
    """

    query_ids: list[str]
    queries: list[str]
    passage_ids: list[str]
    passages: Sequence[str]
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
            passages=KeptColumn(self.passages, rows),
            positives=[np.searchsorted(rows, found).tolist() for found in self.positives],
            refused=[np.searchsorted(rows, found).tolist() for found in self.refused],
            own=[place.get(row) for row in self.own],
        )

    @property
    def no_negatives(self) -> list[set[int]]:
        """Rows that are no negatives of each query: its positives, and itself."""
        return [{*positives, *([] if own is None else [own])}
                for positives, own in zip(self.positives, self.own, strict=True)]  # fmt: skip


@dataclass(frozen=True)
class Unjudged:
    """A split's queries and all passages, as RetrievalData has them, without judgements."""

    passage_ids: Sequence[str]
    passages: Sequence[str]
    query_ids: list[str]
    queries: list[str]
    qrels: Qrels = field(default_factory=dict)
    candidates: Qrels | None = None
    keep_self_hits: bool = False

    @classmethod
    def of(cls, spec: str, split: str) -> "Unjudged":
        """Load a split of a data spec."""
        corpus = load_corpus(spec).findable
        return cls(corpus.ids, corpus.passages, *load_queries(spec, split))


def load_pairs(specs: Sequence[str], split: str, exclusion: Exclusion, *, labels: bool = True) -> TrainingPairs:
    """Load the queries of a split that have a relevant passage (grade above 0), of one or several data specs.

    What an excluded set shares is left out: queries, and passages, be they relevant or not.

    Args:
        labels: if False, all queries of the split are loaded, and no judgements.
    """
    query_ids: list[str] = []
    queries: list[str] = []
    passage_ids: list[str] = []
    passages: list[Sequence[str]] = []
    positives: list[list[int]] = []
    refused: list[list[int]] = []
    own: list[int | None] = []
    for spec in specs:
        data = load_training(spec, split) if labels else Unjudged.of(spec, split)
        kept, texts = list(data.passage_ids), data.passages
        if exclusion.specs:
            rows = np.array([i for i, text in enumerate(texts) if exclusion.keeps(text)], dtype=np.int64)
            kept, texts = [kept[i] for i in rows], KeptColumn(texts, rows)
        row = {pid: len(passage_ids) + i for i, pid in enumerate(kept)}
        passage_ids += kept
        passages.append(texts)
        for qid, query in zip(data.query_ids, data.queries, strict=True):
            judged = data.qrels.get(qid, {})
            grades = [(grade, row[pid]) for pid, grade in judged.items() if grade > 0 and pid in row]
            if (grades or not labels) and exclusion.keeps(query):
                query_ids.append(qid)
                queries.append(query)
                positives.append([i for _, i in sorted(grades, key=lambda pair: -pair[0])])
                candidates = (data.candidates or {}).get(qid, {})
                refused.append([row[pid] for pid, grade in candidates.items() if grade <= 0 and pid in row])
                own.append(None if data.keep_self_hits else row.get(qid))
    if not queries:
        raise InputError(f"{', '.join(specs)}: no query is left that shares nothing with an excluded set")
    return TrainingPairs(query_ids, queries, passage_ids, JoinedColumn(passages), positives, refused, own)


def texts_to_join(
    model: ElasticModel, pairs: TrainingPairs, passage_tokens: int | None = None
) -> tuple[TokenizedTexts, TokenizedTexts]:
    """Queries and passages tokenised alone, to be joined to pairs as the model reads them.

    Args:
        passage_tokens: length limit of a passage, if it is to be shorter than the model's.
    """
    limits = model.config.max_tokens
    queries = TokenizedTexts.to_join(model, pairs.queries, limits.query)
    return queries, TokenizedTexts.to_join(model, pairs.passages, min(limits.passage, passage_tokens or limits.passage))


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
    data = data.kept([i for i, pair in enumerate(data.pairs) if _kept(pair, exclusion)])
    return data, torch.from_numpy(data.targets.astype(np.float32) if len(data.labels) == 1 else data.targets)


def load_sentence_pairs(specs: Sequence[str], split: str, exclusion: Exclusion) -> list[Sentences]:
    """Load sentences or pairs without labels, without those that an excluded set shares.

    Raises InputError where some specs hold pairs and others do not.
    """
    found = [pair for spec in specs for pair in load_sentences(spec, split) if _kept(pair, exclusion)]
    if not found:
        raise InputError(f"{', '.join(specs)}: no sentence is left that shares nothing with an excluded set")
    if len({second is None for _, second in found}) > 1:
        raise InputError(f"{', '.join(specs)}: some hold pairs of sentences and others single ones; choose one kind")
    return found


def _kept(pair: Sentences, exclusion: Exclusion) -> bool:
    return all(exclusion.keeps(text) for text in pair if text)
